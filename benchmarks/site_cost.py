"""What does one more hospital cost the coordinator? Real processes with TLS, idle and in rounds.

    python benchmarks/site_cost.py --results benchmarks/results/site_cost.json --commit $(git rev-parse HEAD)

A coordinator and 1, 2, 4, then 8 hospitals on one machine, each a real node with its own key and approved bundle. At
each size, first nothing happens for a while: a node asks for requests every five seconds. Then a study runs
without privacy, whose model is so small that what passes is what a round costs whatever the model. A relay between the
hospitals and the coordinator counts bytes, TLS included.

Cost per site is the slope of a straight line through the sizes. What follows for 10, 100 and 1,000 sites is that line
drawn on, and says so: nobody ran them. The last line is JSON.
"""

import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from runs import keep_result

from fl_client.node.pace import BUSY_FOR

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from byte_counter import ByteCounter
from deployed_federation import Federation, federation, free_port

SIZES = (1, 2, 4, 8)
EXTRAPOLATED = (10, 100, 1000)
STUDY = "breast-cancer"
SETTINGS = ("privacy.mechanism=none", "stopping.patience=0", "federation.min-sites=1")
TICKS = os.sysconf("SC_CLK_TCK")
MEGABYTE = 1e6


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What was measured at one size.

    Attributes:
        sites: Hospitals online.
        idle_cpu: Seconds of a core that the SuperLink used in a minute in which nothing happened.
        idle_bytes: To and from all hospitals in that minute.
        round_cpu: Seconds of a core that the SuperLink used for a round, what it uses idle not counted.
        round_bytes: To and from all hospitals for a round, idle not counted.
        round_seconds: Time of a round, everything on this machine.
        superlink_memory: Resident, MB, after the rounds.
        node_memory: Resident, MB, of a hospital's processes while idle, on average.
    """

    sites: int
    idle_cpu: float
    idle_bytes: float
    round_cpu: float
    round_bytes: float
    round_seconds: float
    superlink_memory: float
    node_memory: float


def cpu_seconds(pid: int) -> float:
    """Of a process and its threads, since it began."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(pid: int) -> float:
    """Resident, MB; pages that forked processes share are divided among them."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.partition("\nPss:")[2].split()[0]) * 1024 / MEGABYTE


def site_toml(number: int) -> str:
    """One of eight parts of a data set that scikit-learn ships."""
    keys = [assignment.partition("=")[0] for assignment in (*SETTINGS, "num-rounds=1")]
    return f"""name = "hospital-{number}"
declared-examples = 50
[source]
kind = "built-in"
dataset = "breast-cancer"
parts = [{number}]
num-parts = {max(SIZES)}
alpha = 100.0
test-fraction = 0.3
seed = 15
[policy]
epsilon-budget = 1.0
delta = 0.001
require-privacy = false
allow-one-class = true
min-examples = 1
measurements = "exact"
run-settings = {json.dumps(keys)}
[node]
runtime-port = {free_port()}
"""


def measure(made: Federation, counter: ByteCounter, sites: int, *, seconds: float, rounds: int) -> Sample:
    """One size: a while of nothing, then a run."""
    superlink = made.pid_of("coordinator", "fl_server.host.superlink")
    time.sleep(BUSY_FOR + 5)  # nodes ask less often by then, and what starting one costs is over
    cpu, passed = cpu_seconds(superlink), counter.total()
    time.sleep(seconds)
    idle_cpu, idle_bytes = (cpu_seconds(superlink) - cpu) / seconds, (counter.total() - passed) / seconds
    nodes = [sum(memory(pid) for pid in made.pids(f"hospital-{number}")) for number in range(sites)]
    cpu, passed, began = cpu_seconds(superlink), counter.total(), time.monotonic()
    words = [word for assignment in (*SETTINGS, f"num-rounds={rounds}") for word in ("--set", assignment)]
    made.run_study(STUDY, *words, timeout=1800)
    took = time.monotonic() - began
    return Sample(
        sites=sites,
        idle_cpu=60 * idle_cpu,
        idle_bytes=60 * idle_bytes,
        round_cpu=(cpu_seconds(superlink) - cpu - took * idle_cpu) / rounds,
        round_bytes=(counter.total() - passed - took * idle_bytes) / rounds,
        round_seconds=took / rounds,
        superlink_memory=memory(superlink),
        node_memory=float(np.mean(nodes)),
    )


def slopes(samples: list[Sample]) -> dict[str, tuple[float, float]]:
    """Cost per site and cost without one, by least squares, of all that grows with sites."""
    sites = [sample.sites for sample in samples]
    names = ("idle_cpu", "idle_bytes", "round_cpu", "round_bytes", "superlink_memory")
    found = {}
    for name in names:
        slope, offset = np.polyfit(sites, [getattr(sample, name) for sample in samples], deg=1)
        found[name] = (float(slope), float(offset))
    return found


def extrapolate(lines: dict[str, tuple[float, float]]) -> list[dict[str, float]]:
    """What the lines say of sizes that nobody ran."""
    return [
        {"sites": sites, **{name: round(slope * sites + offset, 3) for name, (slope, offset) in lines.items()}}
        for sites in EXTRAPOLATED
    ]


def print_table(samples: list[Sample], beyond: list[dict[str, float]], console: Console) -> None:
    """The table of docs/deployment/scale.md; extrapolated rows are marked."""
    table = Table("sites", "idle, CPU s/min", "idle, KB/min", "round, CPU s", "round, KB", "SuperLink, MB")
    rows = [(str(sample.sites), asdict(sample)) for sample in samples]
    rows += [(f"{row['sites']:.0f} *", row) for row in beyond]
    for name, row in rows:
        table.add_row(
            name,
            f"{row['idle_cpu']:.2f}",
            f"{row['idle_bytes'] / 1000:.0f}",
            f"{row['round_cpu']:.2f}",
            f"{row['round_bytes'] / 1000:.0f}",
            f"{row['superlink_memory']:.0f}",
        )
    console.print(table, "* extrapolated, not run")


def main(
    seconds: Annotated[float, typer.Option(help="Of nothing, at each size.")] = 60.0,
    rounds: Annotated[int, typer.Option(help="Of a run, at each size.")] = 5,
    most: Annotated[int, typer.Option(help="Hospitals at the largest size.")] = max(SIZES),
    results: Annotated[Path | None, typer.Option(help="File to keep the result in.")] = None,
    commit: Annotated[str, typer.Option(help="Said in the result: git rev-parse --short HEAD.")] = "not said",
) -> None:
    """Measure what hospitals cost the coordinator, then print the table and what follows for more."""
    console, samples = Console(stderr=True), []
    with tempfile.TemporaryDirectory() as folder, federation(Path(folder)) as made, ByteCounter(made.port) as counter:
        made.init()
        made.start_coordinator()
        for number in range(most):
            made.enrol(f"hospital-{number}", site_toml(number), address=f"localhost:{counter.port}")
            made.start_hospital(f"hospital-{number}")
            if number + 1 in SIZES:
                samples.append(measure(made, counter, number + 1, seconds=seconds, rounds=rounds))
                console.print(samples[-1])
    lines = slopes(samples)
    beyond = extrapolate(lines)
    print_table(samples, beyond, console)
    figures: dict[str, Any] = {
        **{f"{name}_per_site": round(slope, 4) for name, (slope, _) in lines.items()},
        "node_memory": round(float(np.mean([sample.node_memory for sample in samples])), 1),
        "extrapolated_not_run": beyond,
    }
    if results is not None:
        about = {"script": "benchmarks/site_cost.py", "commit": commit, "seconds": seconds, "rounds": rounds}
        keep_result(results, about=about, figures=figures, rows=[asdict(sample) for sample in samples])
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
