"""Settings that must be in place before any test imports Flower or torch."""

import os

# The Makefile exports the same four; here they cover a bare `pytest`.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

# One thread per process: sums are added in one order, and small tensors are faster without a thread pool.
os.environ["OMP_NUM_THREADS"] = "1"

from postgres import postgres_server  # noqa: F401  a fixture of every test
