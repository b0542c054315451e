"""The only place that says where a simulated run keeps its files."""

from collections.abc import Mapping
from pathlib import Path

from fl_contract.study_file import Scalar


def run_folder(run_config: Mapping[str, Scalar], run_id: int) -> Path:
    """The folder of a simulated run: its own setting ``out``, or one named after Flower's run.

    The coordinator keeps each variant's record below it, and virtual hospitals keep their state in ``sites``.
    """
    out = str(run_config.get("out", ""))
    return Path(out) if out else Path("runs") / f"flower-{run_id}"
