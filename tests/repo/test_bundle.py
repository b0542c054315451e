"""What hospitals receive is our packages, the studies, the licence and pyproject.toml, and nothing else."""

import ast
import io
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

ROOT = Path(__file__).parents[2]
PACKAGES = ("fl_contract/", "privacy/", "strategies/", "fl_client/", "fl_server/")
HOST_CODE = (
    *("fl_server/host/", "fl_client/node/", "fl_server/cli.py", "fl_client/cli.py"),
    *("fl_server/simulation.py", "fl_server/flower_engine.py"),
)
WANTED = re.compile(rf"pyproject\.toml|LICENSE|\.info/CONTENT|studies/[^/]+\.toml|({'|'.join(PACKAGES)}).+\.py")


def _bundled_files(bundle: bytes) -> set[str]:
    return set(zipfile.ZipFile(io.BytesIO(bundle)).namelist())


@pytest.fixture
def tree(tmp_path: Path, committable_files: list[str]) -> Path:
    """A clean copy of the repository, in a folder whose name Flower accepts."""
    copy = tmp_path / "consilium"
    for name in committable_files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    return copy


def test_the_bundle_holds_only_packages_studies_licence_and_pyproject(tree: Path) -> None:
    bundled = _bundled_files(build_fab_from_disk(tree))

    assert [name for name in sorted(bundled) if not WANTED.fullmatch(name)] == []
    assert {"pyproject.toml", "LICENSE", "fl_server/app.py", "fl_client/app.py"} <= bundled


def test_the_bundle_holds_every_file_of_the_packages(tree: Path, committable_files: list[str]) -> None:
    """Flower drops what is no Python file, and test_*.py, without a word; the run would fail at the hospital."""
    bundled = _bundled_files(build_fab_from_disk(tree))

    wanted = [name for name in committable_files if name.startswith(PACKAGES) and not name.startswith(HOST_CODE)]
    assert [name for name in wanted if name not in bundled] == []


def test_no_code_of_a_host_is_in_the_bundle_nor_needed_by_it(tree: Path) -> None:
    """What approves, starts and watches code is installed at a host; were it in the bundle, it would approve itself."""
    archive = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(tree)))
    host_modules = tuple(
        f"{name.removesuffix('.py').rstrip('/')}/".replace("/", ".") for name in (*HOST_CODE, "fl_host/")
    )

    needed = {
        (name, module)
        for name in archive.namelist()
        if name.endswith(".py")
        for module in _imported_modules(archive.read(name).decode())
        if f"{module}.".startswith(host_modules)
    }

    assert [name for name in archive.namelist() if name.startswith(HOST_CODE)] == []
    assert needed == set()


def _imported_modules(source: str) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


@pytest.mark.parametrize(
    "secret",
    [
        "secret.yaml",
        "site.toml",
        "notes.md",
        "fl_client/notes.json",
        "fl_client/site.toml",
        "studies/patients.json",
        "studies/private/site.toml",
        "deploy/keys.yaml",
        "deploy/LICENSE",
        "tests/fl_client/helper.py",
        "docs/fl_client/extract.py",
        ".github/token.yml",
    ],
)
def test_a_stray_file_does_not_reach_hospitals(tree: Path, secret: str) -> None:
    (tree / secret).parent.mkdir(parents=True, exist_ok=True)
    (tree / secret).write_text("'a secret'\n")

    bundled = _bundled_files(build_fab_from_disk(tree))

    assert secret not in bundled


def test_two_builds_of_one_tree_are_equal(tree: Path, tmp_path: Path) -> None:
    """A hospital approves a hash, so anybody must be able to build it again, wherever the folder is."""
    elsewhere = shutil.copytree(tree, tmp_path / "elsewhere" / "main")

    assert build_fab_from_disk(tree) == build_fab_from_disk(elsewhere)
