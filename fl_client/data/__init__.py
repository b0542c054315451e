"""The only place that opens files or databases with patients' records."""
