"""What ``docs/continual.md`` tells a person to type runs as it stands, in its order."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fl_server.cli import app

TEXT = (Path(__file__).parents[2] / "docs" / "continual.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"(?m)^fl-server (simulate .*)$", TEXT)
QUICK = ["--no-baselines", "--set", "num-rounds=2", "--set", "privacy.mechanism=none", "--set", "stopping.patience=0"]


@pytest.mark.slow
def test_the_commands_link_each_run_to_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    headers: dict[str, dict[str, Any]] = {}

    for command in sorted(COMMANDS, key=lambda each: not each.endswith("--out runs/first")):
        result = CliRunner().invoke(app, [*command.split(), *QUICK])
        assert result.exit_code == 0, result.output

    for name in ("first", "warm", "second"):
        headers[name] = json.loads((tmp_path / "runs" / name / "federated" / "run.json").read_text())
    assert headers["first"]["starts_from"] is None
    for name, kind in (("warm", "warm-start"), ("second", "continue-from")):
        origin = headers[name]["starts_from"]
        assert (origin["kind"], origin["run"]) == (kind, headers["first"]["run"])
        assert headers[name]["run"] != headers["first"]["run"]
        assert "the model of run" in (tmp_path / "runs" / name / "report.html").read_text()
