"""Every figure in the documents on privacy is printed by a command that stands in the same document."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "docs" / "privacy.md", ROOT / "docs" / "sharp-edges.md"]

_BLOCK = re.compile(r"```python\n.*?```", flags=re.DOTALL)
_ARXIV = re.compile(r"arXiv \d{4}\.\d{5}")
_FIGURE = re.compile(r"(?<![\w.])\d+\.\d+|\d+(?= ?%)")


def _figures_without_a_command(text: str) -> list[str]:
    commands = "\n".join(_BLOCK.findall(text))
    prose = _ARXIV.sub("", _BLOCK.sub("", text))
    known = re.findall(r"\d+\.?\d*", commands)
    return [figure for figure in _FIGURE.findall(prose) if figure not in known]


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_commands_print_what_the_document_says(document: Path) -> None:
    result = doctest.testfile(str(document), module_relative=False)

    assert result.attempted >= 4
    assert result.failed == 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_prose_holds_no_figure_of_its_own(document: Path) -> None:
    assert _figures_without_a_command(document.read_text(encoding="utf-8")) == []


def test_a_figure_that_no_command_prints_is_found() -> None:
    text = "At 0.25, as arXiv 2003.14053 says, 12.5 or 7 % are lost.\n```python\n>>> 1 / 4\n0.25\n\n```\n"

    assert _figures_without_a_command(text) == ["12.5", "7"]
