"""What we publish names no machine of ours and no package index: it must work on yours."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Written so that no pattern matches its own source.
FORBIDDEN = {
    "a home folder": r"/(home|Users)/\w|/root\b/",
    "a working folder": r"(?<![\w.])/(work|workspace|mnt)/\w",
    "a temporary folder": r"(?<![\w.])/tmp/(pytest|pip|tmp)",
    "a package index": r"pypi[.]org|python[h]osted|download[.]pytorch[.]org|registry[.]npmjs|conda[.]anaconda[.]org",
    "an index option": r"--(extra-)?index-url\b|--find-link[s]|--trusted-hos[t]|\b(PIP|UV)_\w*INDEX\w*\s*=",
}


@pytest.fixture(scope="module")
def texts(committable_files: list[str]) -> dict[str, str]:
    contents = {name: (ROOT / name).read_bytes() for name in committable_files}
    return {name: content.decode("utf-8") for name, content in contents.items() if b"\0" not in content}


@pytest.mark.parametrize("kind", FORBIDDEN)
def test_no_tracked_file_names(texts: dict[str, str], kind: str) -> None:
    pattern = re.compile(FORBIDDEN[kind])

    found = [
        f"{name}:{number}: {line.strip()}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]

    assert found == []


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("a home folder", "/".join(["", "home", "ada", "study"])),
        ("a home folder", "/".join(["", "root", "study"])),
        ("a working folder", "/".join(["", "work", "study"])),
        ("a temporary folder", "/".join(["", "tmp", "pytest-of-ada"])),
        ("a package index", ".".join(["https://pypi", "org"])),
        ("an index option", "-".join(["-", "index", "url"]) + " x"),
        ("an index option", "_".join(["UV", "DEFAULT", "INDEX"]) + "=x"),
    ],
)
def test_the_guard_sees(kind: str, line: str) -> None:
    assert re.search(FORBIDDEN[kind], line)
