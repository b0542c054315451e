"""Promise: every file in deploy/ fits its schema, is locked down, pins what it runs, and runs commands that exist."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import pytest
import typer.main
import yaml
from click import Command, Group

from fl_client.cli import app as client_app
from fl_server.cli import app as server_app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted((DEPLOY / "docker").glob("Dockerfile.*[!e]"))
COMPOSE_FILES = sorted((DEPLOY / "compose").glob("*.yaml"))
MANIFEST_FILES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
DOCUMENTS = sorted((ROOT / "docs" / "deployment").glob("*.md"))

KUBERNETES_VERSIONS = ("1.29", "1.37")
MOST_EXPOSURE = 2.0
"""By systemd-analyze, 0 to 10; 9.6 is a service without any of its settings."""

COMMANDS = {"fl-server": typer.main.get_command(server_app), "fl-client": typer.main.get_command(client_app)}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

Manifest = dict[str, Any]


def _names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def _manifests(path: Path) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def _services(path: Path) -> dict[str, Manifest]:
    services: dict[str, Manifest] = yaml.safe_load(path.read_text())["services"]
    return services


def _pod_specs() -> Iterator[tuple[str, Manifest]]:
    for path in MANIFEST_FILES:
        for manifest in _manifests(path):
            if manifest["kind"] in ("StatefulSet", "Job", "Pod"):
                spec = manifest["spec"]
                yield f"{path.name} {manifest['metadata']['name']}", spec.get("template", {"spec": spec})["spec"]


def _containers() -> Iterator[tuple[str, Manifest]]:
    for name, pod in _pod_specs():
        for container in pod.get("initContainers", []) + pod["containers"]:
            yield f"{name} {container['name']}", container


def _entry_point(image: str) -> str:
    return {"consilium-coordinator": "fl-server", "consilium-hospital": "fl-client"}[image.partition(":")[0]]


def _unit_settings(path: Path) -> dict[str, list[str]]:
    settings: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings.setdefault(name, []).append(value)
    return settings


def _commands_of_deploy() -> Iterator[tuple[str, list[str]]]:
    """Every command line of ours that a file in deploy/ starts: where it stands, and its words."""
    for path in UNITS:
        for line in _unit_settings(path)["ExecStart"]:
            program, *words = shlex.split(line)
            yield path.name, [Path(program).name, *words]
    for path in COMPOSE_FILES:
        for name, service in _services(path).items():
            yield f"{path.name} {name}", [_entry_point(service["image"]), *service["command"]]
    for name, container in _containers():
        if "args" in container:
            yield name, [_entry_point(container["image"]), *container["args"]]
    for path in DOCKERFILES:
        text = path.read_text()
        words = [yaml.safe_load(re.findall(rf"^{key} (\[.*\])$", text, re.M)[-1]) for key in ("ENTRYPOINT", "CMD")]
        yield path.name, [*words[0], *words[1]]


def _commands_of_documents() -> Iterator[tuple[str, list[str]]]:
    """Every command line of ours in a code block of docs/deployment/, without what stands before it."""
    for path in DOCUMENTS:
        for block in re.findall(r"^```(?:sh|bash)\n(.*?)^```", path.read_text(), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if found := re.search(r"(?:^|[\s/])(fl-(?:server|client)\b[^#|;&]*)", line):
                    yield path.name, shlex.split(found[1])
                if found := re.search(r"compose/(coordinator|hospital)\.yaml run --rm \w+ (.*)", line):
                    yield path.name, [_entry_point(f"consilium-{found[1]}:"), *shlex.split(found[2])]


def _why_unknown(words: list[str]) -> str | None:
    """What of a command line does not exist; None if all of it does."""
    command: Command = COMMANDS[words[0]]
    rest = words[1:]
    while isinstance(command, Group) and rest and not rest[0].startswith("-"):
        found = command.commands.get(rest[0])
        if found is None:
            return f"{command.name}: no command {rest[0]}"
        command, rest = found, rest[1:]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in rest if word.startswith("--") and word != "--help" and word not in options]
    return f"{words[1]}: no option {', '.join(unknown)}" if unknown else None


def test_there_are_files_of_every_kind() -> None:
    assert _names(DOCKERFILES) == ["Dockerfile.coordinator", "Dockerfile.hospital"]
    assert len(COMPOSE_FILES) == len(UNITS) == 2
    assert len(MANIFEST_FILES) == 4


def test_every_command_that_deploy_starts_exists_with_its_options() -> None:
    commands = list(_commands_of_deploy())

    wrong = {where: why for where, words in commands if (why := _why_unknown(words))}

    assert wrong == {}
    assert len(commands) >= 9


def test_every_command_in_the_deployment_documents_exists_with_its_options() -> None:
    commands = list(_commands_of_documents())

    wrong = {f"{where}: {shlex.join(words)}": why for where, words in commands if (why := _why_unknown(words))}

    assert wrong == {}
    assert len(commands) >= 20


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=_names(COMPOSE_FILES))
def test_a_compose_file_fits_the_specification(path: Path) -> None:
    compose_spec.PyCompose.from_yaml(path.read_text()).validate()


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=_names(COMPOSE_FILES))
def test_a_container_of_compose_is_locked_down(path: Path) -> None:
    for service in _services(path).values():
        assert service["read_only"] is True
        assert service["user"] == "10001:10001"
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not {"privileged", "cap_add", "devices", "environment"} & service.keys()
        assert {"restart", "mem_limit", "pids_limit", "tmpfs"} <= service.keys()


def test_a_hospital_publishes_no_port_and_the_coordinator_one() -> None:
    assert "ports" not in _services(DEPLOY / "compose" / "hospital.yaml")["hospital"]
    assert _services(DEPLOY / "compose" / "coordinator.yaml")["coordinator"]["ports"] == ["8443:8443"]


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("path", MANIFEST_FILES, ids=_names(MANIFEST_FILES))
def test_a_manifest_fits_the_schema_of_kubernetes(path: Path, version: str) -> None:
    for manifest in _manifests(path):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_pod_passes_the_restricted_standard_of_kubernetes() -> None:
    pods = dict(_pod_specs())
    containers = dict(_containers())

    for pod in pods.values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all(not volume.keys() & {"hostPath"} for volume in pod["volumes"])
    for container in containers.values():
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
    assert len(pods) == 4


def test_every_namespace_enforces_that_standard_and_has_a_policy_for_all_of_its_pods() -> None:
    for path in (DEPLOY / "kubernetes" / "coordinator.yaml", DEPLOY / "kubernetes" / "hospital.yaml"):
        by_kind = {manifest["kind"]: manifest for manifest in _manifests(path)}
        labels = by_kind["Namespace"]["metadata"]["labels"]
        policy = by_kind["NetworkPolicy"]["spec"]

        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
        assert policy["podSelector"] == {}
        assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]


def test_only_the_coordinators_hospital_port_can_be_reached() -> None:
    coordinator, hospital = (_manifests(DEPLOY / "kubernetes" / f"{name}.yaml") for name in ("coordinator", "hospital"))

    services = [manifest for manifest in coordinator + hospital if manifest["kind"] == "Service"]
    policies = {m["metadata"]["name"]: m["spec"] for m in coordinator + hospital if m["kind"] == "NetworkPolicy"}

    assert [port["port"] for service in services for port in service["spec"]["ports"]] == [8443]
    assert policies["coordinator"]["ingress"] == [{"ports": [{"port": 8443, "protocol": "TCP"}]}]
    assert policies["coordinator"]["egress"] == []
    assert policies["hospital"]["ingress"] == []
    assert [rule["ports"][0]["port"] for rule in policies["hospital"]["egress"]] == [8443, 53, 5432]


def test_what_a_container_writes_belongs_to_its_user_in_the_image() -> None:
    for path in COMPOSE_FILES:
        image = (DEPLOY / "docker" / f"Dockerfile.{path.stem}").read_text()
        made = re.findall(r"^RUN install -d -o 10001 -g 10001 -m 0700 (.*)$", image, re.M)

        mounted = {volume.partition(":")[2] for service in _services(path).values() for volume in service["volumes"]}

        assert [set(folders.split()) for folders in made] == [mounted]


def test_a_hospital_without_a_database_needs_no_file_of_credentials() -> None:
    secrets = yaml.safe_load((DEPLOY / "compose" / "hospital.yaml").read_text())["secrets"]

    assert secrets["database_credentials"]["file"] == "${DATABASE_CREDENTIALS_FILE:-/dev/null}"


def test_both_images_share_every_layer_but_that_of_their_folders() -> None:
    shared = [path.read_text().partition("\nFROM ")[2].partition("\nRUN install -d")[0] for path in DOCKERFILES]

    assert shared[0] == shared[1]
    assert "COPY --from=build" in shared[0]


def test_every_image_is_pinned_to_this_version() -> None:
    images = [service["image"] for path in COMPOSE_FILES for service in _services(path).values()]
    images += [container["image"] for _, container in _containers()]

    assert {image.partition(":")[2] for image in images} == {VERSION}


@pytest.mark.parametrize("path", DOCKERFILES, ids=_names(DOCKERFILES))
def test_a_dockerfile_has_no_lint(path: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"

    done = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, check=False)

    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.parametrize("path", DOCKERFILES, ids=_names(DOCKERFILES))
def test_an_image_is_pinned_small_and_not_roots(path: Path) -> None:
    text = path.read_text()
    final = text[text.rindex("\nFROM ") :]

    bases = re.findall(r"^FROM (\S+)", text, re.M)

    assert set(bases) == {"python:3.11.14-slim-bookworm"}
    assert text.count("-c constraints.txt") + text.count("PIP_CONSTRAINT=constraints.txt") == text.count("pip install")
    assert re.search(r"-m compileall -q -j 0 fl_contract privacy strategies fl_host fl_client fl_server ", text)
    assert "USER 10001:10001" in final
    assert not re.search(r"apt-get|pip install|gcc|ADD |:latest", final)
    assert "HEALTHCHECK" in final
    assert re.findall(r"^EXPOSE (.*)$", text, re.M) == (["8443"] if path.suffix == ".coordinator" else [])


def test_what_an_image_copies_is_what_the_ignore_file_lets_in() -> None:
    for path in DOCKERFILES:
        copied = {
            word.removeprefix("./")
            for line in re.findall(r"^COPY (?!--from)(.*)$", path.read_text(), re.M)
            for word in line.split()[:-1]
        }
        ignore = (path.parent / f"{path.name}.dockerignore").read_text().splitlines()
        allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}

        assert allowed == copied
        assert ignore[1] == "*"
        assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("path", UNITS, ids=_names(UNITS))
def test_a_unit_is_locked_down_and_comes_back(path: Path) -> None:
    settings = _unit_settings(path)

    expected = {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "UMask": "0077",
        "Restart": "always",
        "RestartPreventExitStatus": "2",
        "CapabilityBoundingSet": "",
        "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
        "StartLimitIntervalSec": "0",
        "StateDirectoryMode": "0700",
    }
    assert {name: settings.get(name) for name in expected} == {name: [value] for name, value in expected.items()}
    assert settings["User"] != ["root"]
    assert settings["SystemCallFilter"][0] == "@system-service"
    assert "MemoryMax" in settings


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze here (Debian: apt install systemd)"
)
@pytest.mark.parametrize("path", UNITS, ids=_names(UNITS))
def test_systemd_finds_nothing_wrong_with_a_unit(path: Path, tmp_path: Path) -> None:
    installed = str(Path(sys.executable).parent)
    unit = tmp_path / path.name
    unit.write_text(path.read_text().replace("/opt/consilium/.venv/bin", installed))
    drop_ins = path.parent / f"{path.name}.d"
    if drop_ins.exists():
        shutil.copytree(drop_ins, tmp_path / drop_ins.name)

    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    scored = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", unit],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (verified.stderr, verified.returncode) == ("", 0)
    level = re.search(r"exposure level for \S+: ([0-9.]+)", scored.stdout)
    assert level
    assert float(level[1]) <= MOST_EXPOSURE
