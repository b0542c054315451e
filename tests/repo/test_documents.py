"""What the documents tell a person to type exists, and what they link to is there."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

import fl_client.cli
import fl_server.cli
from fl_client.settings import SiteSettings, read_site_settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
APPS = {"fl-server": fl_server.cli.app, "fl-client": fl_client.cli.app}


def _commands() -> list[tuple[str, str]]:
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```(?:bash)?\n(.*?)```", document.read_text(), flags=re.DOTALL):
            for line in block.splitlines():
                words = line.removeprefix(".venv/bin/").strip()
                if words.split(" ")[0] in (*APPS, "make"):
                    found.append((document.name, words))
    return found


@pytest.mark.parametrize(("document", "command"), _commands())
def test_a_documented_command_has_a_target_or_a_subcommand_and_its_options(document: str, command: str) -> None:
    program, *arguments = shlex.split(command, comments=True)

    if program == "make":
        targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(arguments) <= set(targets), document
        return

    group = typer.main.get_command(APPS[program])
    subcommand = group.commands[arguments[0]]  # type: ignore[attr-defined]
    known = {name for parameter in subcommand.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in arguments if word.startswith("--")} <= known, document


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text())

    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_example_of_a_site_s_settings_is_valid() -> None:
    settings = read_site_settings(ROOT / "deploy" / "site.example.toml")

    assert settings.policy.require_privacy


SOURCES = re.findall(r"```toml\n(\[source\].*?)```", (ROOT / "docs" / "data-sources.md").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("source", SOURCES, ids=lambda text: tomllib.loads(text)["source"]["kind"])
def test_the_example_of_each_source_is_valid(source: str) -> None:
    raw = {"name": "st-anna", "declared-examples": 10, "policy": {"epsilon-budget": 1.0, "delta": 0.001}}

    settings = SiteSettings.parse(raw | tomllib.loads(source), origin="docs/data-sources.md")

    assert settings.source.kind


def test_the_files_that_the_readme_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"`((?:fl_\w+|privacy|strategies|studies|docs)/[\w./-]*)`", text)

    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
