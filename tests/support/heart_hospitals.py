"""The four hospitals of UCI heart disease as a deployed federation has them; one keeps its patients in PostgreSQL."""

import json
from pathlib import Path

import pandas as pd
from deployed_federation import free_port
from postgres import PostgresServer

from fl_client.data.public_hospitals import read_public_hospitals

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "heart_disease"
NAMES = ("cleveland", "hungarian", "switzerland", "va")
DECLARED = {"cleveland": 200, "hungarian": 170, "switzerland": 30, "va": 90}
RUN_SETTINGS = ("num-rounds", "privacy.mechanism", "stopping.patience", "strategy.name", "federation.min-sites")
"""What these hospitals let a run set, and one more that has to do with time."""

SEEN_SETTINGS = (*RUN_SETTINGS, "federation.round-timeout-seconds", "federation.late-replies")

_ANSWERS = {
    "policy": f"""
[policy]
epsilon-budget = 20.0
epsilon-per-study = 5.0
delta = 0.0001
require-privacy = false
allow-one-class = true
measurements = "exact"
run-settings = {json.dumps(SEEN_SETTINGS)}
""",
}


def file_hospital(name: str, *, task_timeout_seconds: int = 120) -> str:
    """``site.toml`` of a hospital that reads the data's own files."""
    source = f"""
kind = "public-hospitals"
dataset = "heart-disease"
folder = "{DATA}"
parts = [{NAMES.index(name)}]
"""
    return site_toml(name, source, declared=DECLARED[name], task_timeout_seconds=task_timeout_seconds)


def site_toml(name: str, source: str, *, declared: int, task_timeout_seconds: int = 120) -> str:
    """``site.toml`` of a hospital."""
    node = f"[node]\nruntime-port = {free_port()}\ntask-timeout-seconds = {task_timeout_seconds}\n"
    return f'name = "{name}"\ndeclared-examples = {declared}\n\n[source]{source}{_ANSWERS["policy"]}\n{node}'


def database_hospital(name: str, server: PostgresServer, folder: Path, *, prefix: str = "") -> str:
    """``site.toml`` of a hospital whose patients are in a table of a real PostgreSQL; makes the table.

    Args:
        name: Of the hospital.
        server: That runs.
        folder: For the file with the password.
        prefix: Of the table's columns that are not features, and of patients' numbers.
    """
    table = hospital_table(name).assign(patient=lambda rows: prefix + rows["patient"])
    table = table.rename(columns={"patient": f"{prefix}patient"})
    kinds = {column: "double precision" for column in table.columns if pd.api.types.is_numeric_dtype(table[column])}
    with server.connect() as connection, connection.cursor() as cursor:
        columns = ", ".join(f'"{column}" {kinds.get(column, "text")}' for column in table.columns)
        cursor.execute(f'CREATE TABLE "{name}" ({columns})')
        with cursor.copy(f'COPY "{name}" FROM STDIN') as copy:
            for row in table.itertuples(index=False):
                copy.write_row(list(row))
    secret = folder / f"{name}.credentials"
    secret.write_text(server.credentials + "\n")
    secret.chmod(0o600)
    source = f"""
kind = "sql"
url = "{server.url}"
credentials = {{ file = "{secret}" }}
query = 'SELECT * FROM "{name}" ORDER BY "{prefix}patient"'
fold = "fold"
label = "outcome"
patient = "{prefix}patient"
"""
    return site_toml(name, source, declared=DECLARED[name])


def hospital_table(name: str) -> pd.DataFrame:
    """A hospital's patients: features, ``outcome``, ``fold``, ``patient``."""
    return read_public_hospitals("heart-disease", DATA)[name]
