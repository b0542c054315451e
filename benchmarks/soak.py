"""Does a federation grow? A day of rounds, with parts killed at random, on real processes with TLS.

    python benchmarks/soak.py --results benchmarks/results/soak.json --commit $(git rev-parse HEAD)

A coordinator and two hospitals train heart disease, one run after another, until the day is over. Every half minute a
client app, an executor, a SuperNode or a server app is killed; a run that fails is resumed. A simulated hour is six
rounds, one every ten minutes.

Memory and open files of the processes that live through all of it (SuperLink, its supervisor, and SuperNode and
supervisor of the hospital whose node is left alone) are read every second, since they go up and down within a round.
Growth is the mean of the last quarter over that of the second; the first is left out, since caches fill then. The last
line is JSON.
"""

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from runs import keep_result

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from deployed_federation import Federation, Service, descendants, federation, kill
from heart_hospitals import file_hospital

ROUNDS_PER_HOUR = 6
ROUNDS_PER_RUN = 12
SETTINGS = (
    *("--set", "privacy.mechanism=none", "--set", f"num-rounds={ROUNDS_PER_RUN}", "--set", "stopping.patience=0"),
    *("--set", "federation.min-sites=1", "--set", "federation.round-timeout-seconds=15.0"),
)
CHANCES = (0.4, 0.25, 0.25, 0.1)
"""Of a client app, an executor, a SuperNode and a server app, whose loss is noticed after a minute."""
AWAIT_SECONDS = 20.0
"""For something to kill: a client app lives for a moment of each round."""
STEADY, SHAKEN = "cleveland", "hungarian"
RUN_SECONDS = 600.0
READ_SECONDS = 1.0


class Meter(threading.Thread):
    """Reads the processes that nobody kills, until it is told to stop."""

    def __init__(self, made: Federation) -> None:
        super().__init__(daemon=True)
        self.processes = {
            "superlink": made.pid_of("coordinator", "fl_server.host.superlink"),
            "coordinator": made.services["coordinator"].process.pid,
            "supernode": made.pid_of(STEADY, "fl_client.node.supernode"),
            "hospital": made.services[STEADY].process.pid,
        }
        self.readings: dict[str, list[tuple[float, float]]] = {name: [] for name in self.processes}
        self.stopped = threading.Event()

    def run(self) -> None:
        """Read every second."""
        while not self.stopped.wait(READ_SECONDS):
            for name, pid in self.processes.items():
                self.readings[name].append(read(pid))

    def stop(self) -> None:
        """End it.

        Raises:
            RuntimeError: A process ended, though nobody killed it.
        """
        if not self.is_alive():
            raise RuntimeError(f"a process has ended of {self.processes}")
        self.stopped.set()
        self.join()


def read(pid: int) -> tuple[float, float]:
    """Megabytes of the process's own, and open files; pages of files are the system's, which drops them as it likes."""
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = int(status.partition("RssAnon:")[2].split()[0])
    return kilobytes / 1024, float(len(list(Path(f"/proc/{pid}/fd").iterdir())))


def disturb(made: Federation, chance: np.random.Generator) -> str:
    """Kill something that is started again by itself."""
    targets: dict[str, Callable[[], list[int]]] = {
        "client app": lambda: descendants(made.pid_of(STEADY, "fl_client.node.executor")),
        "executor": lambda: [made.pid_of(SHAKEN, "fl_client.node.executor")],
        "supernode": lambda: [made.pid_of(SHAKEN, "fl_client.node.supernode")],
        "server app": lambda: [made.pid_of("coordinator", "flwr-serverapp")],
    }
    kind = str(chance.choice(list(targets), p=CHANCES))
    ends = time.monotonic() + AWAIT_SECONDS
    while time.monotonic() < ends:
        with suppress(LookupError):
            for pid in targets[kind]():
                kill(pid)
                return kind
        time.sleep(0.02)
    return "nothing"


def rounds_of(made: Federation) -> int:
    """Recorded by all runs until now."""
    files = (made.folder / "federation" / "runs").glob("*/*/rounds.jsonl")
    return sum(len(path.read_text().splitlines()) for path in files)


def run_once(made: Federation, chance: np.random.Generator, kills: dict[str, int], words: tuple[str, ...]) -> Service:
    """One run, disturbed every few seconds, to its end."""
    run = made.start("run", "fl-server", "run", "heart-disease", "--bundle", str(made.bundle), *words)
    ends, next_kill = time.monotonic() + RUN_SECONDS, time.monotonic() + chance.uniform(5, 25)
    while run.process.poll() is None and time.monotonic() < ends:
        time.sleep(0.2)
        if time.monotonic() > next_kill:
            kind = disturb(made, chance)
            kills[kind] = kills.get(kind, 0) + 1
            next_kill = time.monotonic() + chance.uniform(15, 45)
    return run


def soak(folder: Path, hours: float, seconds: float, seed: int, console: Console) -> dict[str, Any]:
    """Run for so many simulated hours, or so many seconds if they are over first.

    Returns:
        Figures of the whole, and of each process.
    """
    chance = np.random.default_rng(seed)
    kills: dict[str, int] = {}
    runs = failed = resumed = 0
    with federation(folder) as made:
        made.init()
        made.start_coordinator()
        for name in (STEADY, SHAKEN):
            made.enrol(name, file_hospital(name))
            made.start_hospital(name)
        meter = Meter(made)
        meter.start()
        ends = time.monotonic() + seconds
        while rounds_of(made) < hours * ROUNDS_PER_HOUR and time.monotonic() < ends:
            words: tuple[str, ...] = SETTINGS
            runs += 1
            while run_once(made, chance, kills, words).process.returncode:
                folders = sorted((made.folder / "federation" / "runs").glob("*"), key=lambda path: path.stat().st_mtime)
                if not list(folders[-1].glob("*/checkpoint*")) or resumed > 3 * runs:
                    failed += 1
                    break
                resumed += 1
                words = ("--resume", str(folders[-1]), *SETTINGS)
            now = ", ".join(f"{name} {readings[-1][0]:.0f} MB" for name, readings in meter.readings.items())
            console.print(f"{rounds_of(made)} rounds, {runs} runs, {sum(kills.values())} kills; {now}", highlight=False)
        meter.stop()
        hospitals = [made.site_file(name) for name in (STEADY, SHAKEN)]
        for site in hospitals:
            made.run("fl-client", "log", "verify", str(site))
        rounds = rounds_of(made)
    return {
        "rounds": rounds,
        "simulated_hours": round(rounds / ROUNDS_PER_HOUR, 1),
        "runs": runs,
        "resumed": resumed,
        "failed": failed,
        "kills": kills,
        "processes": {name: dict(growth(values)) for name, values in meter.readings.items()},
        "minutes": {name: by_minute(values) for name, values in meter.readings.items()},
    }


def by_minute(values: list[tuple[float, float]]) -> list[list[float]]:
    """Mean memory and open files of each minute."""
    each = round(60 / READ_SECONDS)
    minutes = [values[start : start + each] for start in range(0, len(values), each)]
    return [[round(statistics.mean(column), 1) for column in zip(*minute, strict=True)] for minute in minutes]


def growth(values: list[tuple[float, float]]) -> Iterator[tuple[str, float]]:
    """Of memory and open files: last quarter over second quarter, less one."""
    quarter = max(1, len(values) // 4)
    for position, what in enumerate(("memory", "files")):
        early = statistics.mean(each[position] for each in values[quarter : 2 * quarter] or values[:1])
        late = statistics.mean(each[position] for each in values[-quarter:])
        yield f"{what}_growth", round(late / early - 1, 4)
        yield f"{what}_last", round(late, 1)


def main(
    hours: Annotated[float, typer.Option(help="Simulated, of six rounds each.")] = 24.0,
    minutes: Annotated[float, typer.Option(help="Of real time; the end if it comes first.")] = 90.0,
    seed: Annotated[int, typer.Option(help="Of what is killed when.")] = 0,
    results: Annotated[Path | None, typer.Option(help="File to keep the result in.")] = None,
    commit: Annotated[str, typer.Option(help="Said in the result: git rev-parse --short HEAD.")] = "not said",
) -> None:
    """Soak a federation, then print its growth."""
    with tempfile.TemporaryDirectory() as folder:
        figures = soak(Path(folder), hours, 60 * minutes, seed, Console(stderr=True))
    minutely = figures.pop("minutes")
    if results is not None:
        about = {"script": "benchmarks/soak.py", "commit": commit, "seed": seed}
        keep_result(results, about=about, figures=figures, rows=minutely)
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
