"""What starts often starts fast: libraries that take seconds to import are imported only where they are used.

Each entry point is imported in a fresh interpreter, whose list of modules says what that brought in. A
command line answers ``--help`` without torch; an app waits for no library of a data source that its hospital does not
have, none of a report, and for Opacus only in a study with differential privacy.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FOR_TRAINING = {"torch", "flwr", "numpy", "pydantic"}
FOR_PRIVACY = {"opacus", "scipy", "sympy", "dp_accounting"}
FOR_ONE_SOURCE = {"sklearn", "pandas", "pyarrow", "sqlalchemy", "psycopg", "pydicom", "nibabel", "PIL", "torchvision"}
FOR_A_REPORT = {"matplotlib", "jinja2"}
NEVER_FOR_AN_APP = FOR_PRIVACY | FOR_ONE_SOURCE | FOR_A_REPORT

NOT_IMPORTED = {
    "fl_client.cli": NEVER_FOR_AN_APP | FOR_TRAINING,
    "fl_server.cli": NEVER_FOR_AN_APP | FOR_TRAINING,
    "fl_client.app": NEVER_FOR_AN_APP,
    "fl_server.app": NEVER_FOR_AN_APP,
    "fl_client.data_check": NEVER_FOR_AN_APP,
    "fl_server.simulation": NEVER_FOR_AN_APP,
}

# One interpreter for all, the light ones first: a module that was there before an entry point stays listed for it.
PROGRAM = """
import importlib, json, sys
modules = {}
for entry in sys.argv[1:]:
    importlib.import_module(entry)
    modules[entry] = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps(modules))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """Top-level modules that are there once an entry point and those before it were imported."""
    command = [sys.executable, "-c", PROGRAM, *NOT_IMPORTED]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    modules: dict[str, list[str]] = json.loads(shown)
    return modules


@pytest.mark.slow
@pytest.mark.parametrize("entry", NOT_IMPORTED)
def test_an_entry_point_does_not_wait_for_libraries_that_it_may_never_use(
    imported: dict[str, list[str]], entry: str
) -> None:
    assert set(imported[entry]) & NOT_IMPORTED[entry] == set()


@pytest.mark.slow
def test_the_list_of_modules_sees_what_is_imported(imported: dict[str, list[str]]) -> None:
    assert set(imported["fl_client.app"]) >= FOR_TRAINING
