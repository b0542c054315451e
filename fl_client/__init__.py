"""The hospital: the only package that touches patient records."""
