"""What does a private step cost? Plain SGD, Opacus's hooks and our step, on the same records, in one process.

The ways take turns, on one thread, and each counts by its fastest turn in processor time, so that other work on the
machine hurts all alike. Our step includes Poisson sampling and the secure noise; Opacus's has Poisson sampling and
torch's own noise. Memory is the growth of a child process that takes our steps, over its state with the model loaded.

    python benchmarks/dp_step.py --results benchmarks/results/dp_step.json --commit $(git rev-parse HEAD)

Models: an MLP 30-64-32-2 at 256 records a step; a CNN of two 3 x 3 convolutions (16 and 32 channels, each with a
halving) and two linear layers (64 and 10) on 1 x 28 x 28 at 64; the product's ResNet-18 with GroupNorm on 3 x 28 x 28
at 16, with its stem for small images and with the published one. The last line is JSON.
"""

import json
import platform
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import torch
import typer
from opacus import GradSampleModule  # noqa: TID251  what we compare with
from opacus.optimizers import DPOptimizer  # noqa: TID251
from torch import Tensor, nn
from torch.nn import functional

from fl_contract.models.resnet import ResnetSettings
from fl_contract.schema import ImageSchema
from privacy.dp_sgd import train_privately
from privacy.plan import PrivacyPlan
from privacy.units import Units

RATE = 0.25

COLOUR = ImageSchema.parse(
    {"kind": "image", "label": "x", "classes": ["a", "b"], "height": 28, "width": 28, "channels": 3, "maximum": 1.0},
    origin="benchmark",
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, the records of a step, and how long to measure."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch_size: int
    steps: int
    turns: int


def mlp() -> nn.Module:
    """Three linear layers."""
    return nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))


def cnn() -> nn.Module:
    """Two convolutions and two linear layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


CASES = {
    "mlp": Case(build=mlp, shape=(30,), batch_size=256, steps=100, turns=20),
    "cnn": Case(build=cnn, shape=(1, 28, 28), batch_size=64, steps=6, turns=6),
    "resnet18": Case(
        build=lambda: ResnetSettings(kind="resnet18").build(COLOUR, 2),
        shape=(3, 28, 28),
        batch_size=16,
        steps=2,
        turns=1,
    ),
    "resnet18_large_stem": Case(
        build=lambda: ResnetSettings(kind="resnet18", stem="large").build(COLOUR, 2),
        shape=(3, 28, 28),
        batch_size=16,
        steps=3,
        turns=1,
    ),
}


class Runner:
    """Takes steps of each kind on one model and its records."""

    def __init__(self, case: Case) -> None:
        self.case, self.model = case, case.build()
        self.num_records = round(case.batch_size / RATE)
        self.inputs = torch.randn(self.num_records, *case.shape)
        self.targets = torch.randint(2, (self.num_records,))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)

    def plain(self) -> None:
        """SGD on batches of exactly the expected size."""
        self.model.train()
        for _ in range(self.case.steps):
            rows = torch.randperm(self.num_records)[: self.case.batch_size]
            self.optimizer.zero_grad()
            functional.cross_entropy(self.model(self.inputs[rows]), self.targets[rows]).backward()
            self.optimizer.step()

    def opacus(self) -> None:
        """Opacus's default way; its noise is not secure."""
        wrapped = GradSampleModule(self.model, loss_reduction="mean")
        noisy = DPOptimizer(
            self.optimizer, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=self.case.batch_size
        )
        for _ in range(self.case.steps):
            rows = (torch.rand(self.num_records) < RATE).nonzero().squeeze(1)
            noisy.zero_grad()
            functional.cross_entropy(wrapped(self.inputs[rows]), self.targets[rows]).backward()
            noisy.step()
        wrapped.to_standard_module()
        for parameter in self.model.parameters():
            parameter.grad = parameter.summed_grad = None  # type: ignore[attr-defined]

    def ours(self) -> None:
        """The product's step, as a hospital runs it."""
        plan = PrivacyPlan(
            epsilon=1e6,
            delta=1e-6,
            clip_norm=1.0,
            sampling_rate=RATE,
            steps_per_round=self.case.steps,
            num_rounds=1,
            noise_multiplier=1.0,
            nominal_units=self.num_records,
        )
        train_privately(self.model, self.optimizer, plan, Units.records(self.num_records), self._fetch, self._loss)

    def _fetch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[rows], self.targets[rows]

    @staticmethod
    def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, reduction="none")


def measure(name: str) -> dict[str, float]:
    """Milliseconds of processor time a step for each way, and how many times the plain one that is."""
    runner = Runner(CASES[name])
    ways = {"plain": runner.plain, "opacus": runner.opacus, "ours": runner.ours}
    fastest = dict.fromkeys(ways, float("inf"))
    for turn in range(CASES[name].turns + 1):
        for way, run in ways.items():
            start = time.process_time()
            run()
            if turn:  # the first turn warms up
                fastest[way] = min(fastest[way], time.process_time() - start)
    per_step = {f"{way}_ms": round(1000 * seconds / CASES[name].steps, 3) for way, seconds in fastest.items()}
    return {
        "ratio": round(fastest["ours"] / fastest["plain"], 2),
        "opacus_ratio": round(fastest["opacus"] / fastest["plain"], 2),
        **per_step,
    }


def measure_growth(name: str) -> None:
    """Print the growth of this process's memory at its peak during our steps, in megabytes; Linux only."""
    Runner(CASES["mlp"]).ours()  # loads what the first optimizer and the first private step load
    runner = Runner(CASES[name])
    before = _memory_kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to now
    runner.ours()
    print((_memory_kilobytes("VmHWM") - before) / 1000)


def _memory_kilobytes(line: str) -> int:
    found = re.search(rf"{line}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(f"/proc/self/status has no {line}; expected Linux")
    return int(found.group(1))


def main(
    results: Annotated[Path | None, typer.Option(help="File to keep the result in.")] = None,
    commit: Annotated[str, typer.Option(help="Said in the result: git rev-parse --short HEAD.")] = "not said",
    growth_of: Annotated[str, typer.Option(help="Measure this model's memory only; used by the child.")] = "",
) -> None:
    """Measure, print one line a model, then the figures."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    if growth_of:
        measure_growth(growth_of)
        return
    figures = {}
    for name in CASES:
        figures[name] = measure(name)
        child = [sys.executable, __file__, "--growth-of", name]
        printed = subprocess.run(child, check=True, capture_output=True, text=True).stdout
        figures[name]["growth_mb"] = round(float(printed), 1)
        print(name, figures[name], flush=True)
    if results is not None:
        about = {
            "script": "benchmarks/dp_step.py",
            "commit": commit,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "hardware": f"{platform.machine()}, CPU, one thread, processor time, fastest turn",
            "not_measured": "accelerators, patients with several records, images above 28 pixels",
        }
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps({"about": about, "figures": figures}, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
