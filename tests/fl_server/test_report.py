"""The report answers from the files alone, escapes what they say, fetches nothing, and shows every plot with words."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_contract.errors import RunError
from fl_contract.metrics import Evaluation, ScoreHistogram
from fl_server.report import auroc_standard_error, write_report
from fl_server.report_template import write_names, write_rounds
from fl_server.summary import write_evaluations

RECORDS = {"hospital-1": 142, "hospital-2": 61, "hospital-3": 28, "hospital-4": 167}
STRENGTH = {"local": 2.2, "private": 3.0, "federated": 3.4, "pooled": 3.6}
TARGET = 8.0


class RunFolderWriter:
    """Writes a folder of plausible runs, as the coordinator does.

    Attributes:
        sites: Training records by hospital.
        num_classes: Of the label.
        mechanism: Of the private variant.
        engine: That ran it.
    """

    def __init__(self, out: Path, sites: dict[str, int] | None = None, num_classes: int = 2) -> None:
        self.out = out
        self.sites = RECORDS if sites is None else sites
        self.num_classes = num_classes
        self.mechanism = "dp-sgd"
        self.engine = "local"
        self.generator = np.random.default_rng(7)

    def write_all(self, num_rounds: int = 20) -> Path:
        """Every variant, one local model for each hospital."""
        for variant in ("private", "federated", "pooled", *(f"local-{site}" for site in self.sites)):
            self.write(variant, num_rounds=num_rounds)
        return self.out

    def write(self, variant: str, *, num_rounds: int = 20, **header: Any) -> Path:
        """One variant; ``header`` replaces keys of run.json."""
        folder = self.out / variant
        folder.mkdir(parents=True)
        kind = "local" if variant.startswith("local-") else variant
        is_private = variant == "private" and self.mechanism != "none"
        trainers = {"local": [variant.removeprefix("local-")], "pooled": ["pooled"]}.get(kind, list(self.sites))
        run = self._header(variant, trainers, is_private) | header
        (folder / "run.json").write_text(json.dumps(run))
        rounds = [self._round(number, num_rounds, trainers, kind, is_private) for number in range(1, num_rounds + 1)]
        (folder / "rounds.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rounds))
        write_evaluations(
            folder / "evaluation.json",
            {site: self._measure(max(6, records // 2), STRENGTH[kind]) for site, records in self.sites.items()},
        )
        return folder

    def _header(self, variant: str, trainers: list[str], is_private: bool) -> dict[str, Any]:
        noise = 1.37 if is_private else 0.0
        classes = ["benign", "malignant"] if self.num_classes == 2 else [str(k) for k in range(self.num_classes)]
        mechanism = "dp-sgd" if is_private else "none"
        return {
            "study": "breast-cancer",
            "title": "Malignant or benign: breast masses",
            "variant": variant,
            "run": "3f9a6c0d5b7e4a11",
            "engine": self.engine,
            "status": "completed",
            "reason": "",
            "started": "2026-03-02T09:15:00+00:00",
            "finished": "2026-03-02T09:15:41+00:00",
            "seconds": 41.3,
            "seed": 2026,
            "num_rounds": 20,
            "num_parameters": 31,
            "versions": {"consilium": "0.1.0", "flwr": "1.41.0", "torch": "2.15.0", "opacus": "1.6.0"},
            "sites": {
                site: {"num_examples": self.sites.get(site, sum(self.sites.values())), "noise_multiplier": noise}
                for site in trainers
            },
            "refused": {},
            "settings": {
                "name": "breast-cancer",
                "schema": {"kind": "table", "label": "diagnosis", "classes": classes},
                "privacy": {
                    "mechanism": mechanism,
                    "unit": "record",
                    "epsilon": TARGET,
                    "delta": 0.001,
                    "clip-norm": 0.5,
                    "sampling-rate": 0.25,
                    "steps-per-round": 4,
                },
                "simulation": {"dataset": "breast-cancer"},
            },
        }

    def _round(self, number: int, last: int, trainers: list[str], kind: str, is_private: bool) -> dict[str, Any]:
        strength = STRENGTH[kind] * (1 - 0.7 * np.exp(-number / 4))
        sites = {}
        for site, records in self.sites.items():
            measured = self._measure(max(6, records // 2), strength)
            sites[site] = {
                "num_examples": records if site in trainers else None,
                "test_examples": measured.num_examples,
                "loss": measured.loss,
                "accuracy": measured.accuracy,
                "auroc": measured.auroc if np.isfinite(measured.auroc) else None,
                "bytes_down": 5124,
                "bytes_up": 5124 if site in trainers else 0,
                "seconds": 0.07,
                "epsilon": TARGET * 0.998 * float(np.sqrt(number / last)) if is_private else None,
                "delta": 0.001 if is_private else None,
            }
        losses = [entry["loss"] for entry in sites.values()]
        pooled = {"loss": float(np.mean(losses)), "accuracy": 0.9, "auroc": 0.5 + 0.49 * (1 - np.exp(-number / 3))}
        return {"round": number, "seconds": 0.4, "sites": sites, "pooled": pooled, "missing": {}}

    def _measure(self, num_patients: int, strength: float) -> Evaluation:
        labels = self.generator.integers(0, self.num_classes, size=num_patients)
        columns = 1 if self.num_classes == 2 else self.num_classes
        has_class = labels[:, None] == (1 if columns == 1 else np.arange(columns))
        logits = np.where(has_class, strength / 2, -strength / 2) + self.generator.normal(size=has_class.shape) * 1.2
        correct = (logits[:, 0] > 0) == has_class[:, 0] if columns == 1 else logits.argmax(axis=1) == labels
        loss = np.log1p(np.exp(-np.where(has_class, logits, -logits))).sum()
        scores = ScoreHistogram.from_logits(logits, labels)
        return Evaluation(
            num_examples=num_patients, loss_sum=float(loss), num_correct=int(correct.sum()), scores=scores
        )


@pytest.fixture
def writer(tmp_path: Path) -> RunFolderWriter:
    return RunFolderWriter(tmp_path / "out")
