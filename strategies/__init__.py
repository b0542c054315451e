"""One algorithm a file; each a Flower ``Strategy`` that plain Flower can run too."""
