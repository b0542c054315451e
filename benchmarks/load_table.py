"""What does it cost to load a large table? A million rows of 40 features, from Parquet and from PostgreSQL.

Each source is read in a child process of its own, through the product's path. Memory is the growth of that process at
its peak over its state after a small table was read, and as a multiple of the features' own size in float64; the
PostgreSQL server is the tests' own, on the same machine. One row in five is held out. Prints a line a source; the last
line is JSON. Linux only.

    python benchmarks/load_table.py --results benchmarks/results/load_table.json
"""

import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import typer
from psycopg import sql
from pyarrow import csv, parquet

from fl_client.data.records import Source
from fl_client.data.sql import SqlSource
from fl_client.data.table_file import TableFileSource
from fl_client.source_settings import SqlSourceSettings, TableSourceSettings
from fl_contract.schema import TableSchema

ROOT = Path(__file__).parents[1]
NUM_FEATURES = 40
FEATURES = [f"x{number}" for number in range(NUM_FEATURES)]
SCHEMA = TableSchema.parse(
    {
        "kind": "table",
        "label": "outcome",
        "classes": ["0", "1"],
        "features": [{"name": name, "minimum": -9.0, "maximum": 9.0} for name in FEATURES],
    },
    origin="benchmark",
)
COLUMNS = {"label": "outcome", "fold": "fold", "patient": "person"}
PART_ROWS = 50_000
SMALL_ROWS = 1_000
CREDENTIALS = "LOAD_TABLE_CREDENTIALS"


def parts(rows: int) -> Iterator[pa.Table]:
    """The made-up table, some rows at a time; the same at each call."""
    generator = np.random.default_rng(7)
    for start in range(0, rows, PART_ROWS):
        count = min(PART_ROWS, rows - start)
        numbers = np.arange(start, start + count)
        columns: dict[str, Any] = {name: generator.normal(size=count).round(6) for name in FEATURES}
        columns["person"] = np.char.add("patient-", numbers.astype(str))
        columns["outcome"] = np.where(numbers % 3 == 0, "ill", "well")
        columns["fold"] = np.where(numbers % 5 == 0, "test", "train")
        yield pa.table(columns)


def write_parquet(rows: int, path: Path) -> None:
    """Write the table as pandas would, in row groups of a million rows."""
    with parquet.ParquetWriter(path, next(parts(1)).schema) as writer:
        writer.write_table(pa.concat_tables(parts(rows)), row_group_size=1 << 20)


def write_postgres(rows: int, name: str, server: Any) -> None:
    """Copy the table into the database."""
    columns = [sql.SQL("{} double precision").format(sql.Identifier(column)) for column in FEATURES]
    columns += [sql.SQL("{} text").format(sql.Identifier(column)) for column in ("person", "outcome", "fold")]
    table = sql.Identifier(name)
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute(sql.SQL("CREATE TABLE {} ({})").format(table, sql.SQL(", ").join(columns)))
        with cursor.copy(sql.SQL("COPY {} FROM STDIN (FORMAT csv)").format(table)) as copy:
            for part in parts(rows):
                text = io.BytesIO()
                csv.write_csv(part, text, csv.WriteOptions(include_header=False))
                copy.write(text.getvalue())


def open_source(kind: str, place: str, name: str) -> Source:
    """A hospital's source, as its ``site.toml`` would make it."""
    if kind == "parquet":
        raw = {"kind": "table", "train": f"{name}.parquet", **COLUMNS}
        return TableFileSource(TableSourceSettings.parse(raw, origin=""), folder=Path(place), features=SCHEMA.features)
    query = f"SELECT * FROM {name}"  # noqa: S608  two names of our own
    credentials = {"environment": CREDENTIALS}
    settings = {"kind": "sql", "url": place, "query": query, "credentials": credentials, **COLUMNS}
    return SqlSource(SqlSourceSettings.parse(settings, origin=""), folder=Path(), features=SCHEMA.features)


def measure(kind: str, place: str) -> None:
    """Load, and print what it took; run in a child process."""
    open_source(kind, place, "small").load()  # loads what a first table loads
    before = _memory_kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to now
    start, start_processor = time.perf_counter(), time.process_time()
    records = open_source(kind, place, "large").load()
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - start_processor
    growth = (_memory_kilobytes("VmHWM") - before) / 1000
    rows = len(records.train) + len(records.test)
    features = (records.train.features.nbytes + records.test.features.nbytes) / 1e6
    figures = {
        "rows": rows,
        "seconds": round(seconds, 2),
        "processor_seconds": round(processor_seconds, 2),
        "rows_per_second": round(rows / seconds),
        "growth_mb": round(growth, 1),
        "features_mb": round(features, 1),
        "growth_over_features": round(growth / features, 2),
        "sum": round(float(records.train.features.sum() + records.test.features.sum()), 3),
    }
    print(json.dumps(figures))


def _memory_kilobytes(line: str) -> int:
    found = re.search(rf"{line}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(f"/proc/self/status has no {line}; expected Linux")
    return int(found.group(1))


def run_child(kind: str, place: str, credentials: str) -> dict[str, Any]:
    """The figures of one source, in a process that has read nothing else."""
    child = [sys.executable, __file__, "--kind", kind, "--place", place]
    environment = {**os.environ, CREDENTIALS: credentials, "PYTHONPATH": str(ROOT)}
    printed = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    figures: dict[str, Any] = json.loads(printed)
    print(kind, figures, flush=True)
    return figures


def main(
    rows: Annotated[int, typer.Option(help="Of the large table.")] = 1_000_000,
    results: Annotated[Path | None, typer.Option(help="File to keep the result in.")] = None,
    commit: Annotated[str, typer.Option(help="Said in the result: git rev-parse --short HEAD.")] = "not said",
    kind: Annotated[str, typer.Option(help="Measure this source only; used by the child.")] = "",
    place: Annotated[str, typer.Option(help="Where it is; used by the child.")] = "",
) -> None:
    """Write the tables, measure each source, print the figures."""
    if kind:
        measure(kind, place)
        return
    sys.path.append(str(ROOT / "tests" / "support"))
    from postgres import running_postgres

    figures = {}
    with tempfile.TemporaryDirectory() as folder, running_postgres() as server:
        for name, count in (("small", SMALL_ROWS), ("large", rows)):
            write_parquet(count, Path(folder) / f"{name}.parquet")
            write_postgres(count, name, server)
        figures["parquet"] = run_child("parquet", folder, "")
        figures["postgresql"] = run_child("postgresql", server.url, server.credentials)
    if abs(figures["parquet"]["sum"] - figures["postgresql"]["sum"]) > 0.01:  # two orders of adding up
        raise SystemExit("the two sources gave different features")
    if results is not None:
        about = {
            "script": "benchmarks/load_table.py",
            "commit": commit,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "hardware": f"{platform.machine()}, {os.cpu_count()} cores; server and client on one machine",
            "not_measured": "a network between them, text or numeric columns as features, other row groups",
        }
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps({"about": about, "figures": figures}, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
