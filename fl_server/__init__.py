"""The coordinator: round loop, checkpoints, run record, report."""
