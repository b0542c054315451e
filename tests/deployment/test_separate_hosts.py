"""Hosts with a network of their own: a hospital reaches one port outside, nobody may reach a hospital."""

import shutil
import subprocess
from collections.abc import Iterator

import pytest
from deployed_federation import Federation, Service, federation, free_port, wait_until
from heart_hospitals import DATA, file_hospital
from namespaces import COORDINATOR_ADDRESS, PROXY_ADDRESS, hosts, missing_for_namespaces

MISSING = missing_for_namespaces()
PROXY = shutil.which("tinyproxy")
HOSPITALS = ("cleveland", "hungarian")
BEHIND_PROXY = "switzerland"
PROXY_PORT = free_port()
PLAIN = (
    *("--set", "privacy.mechanism=none", "--set", "stopping.patience=0"),
    *("--set", "federation.min-sites=2"),
)

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(not DATA.exists(), reason=f"{DATA.name}: the four hospitals' files are not beside us"),
    pytest.mark.skipif(bool(MISSING), reason=f"network namespaces: {MISSING}"),
]


def ways_out(port: int) -> dict[str, tuple[str, int]]:
    """Where each hospital's firewall lets it."""
    return dict.fromkeys(HOSPITALS, (COORDINATOR_ADDRESS, port)) | {BEHIND_PROXY: (PROXY_ADDRESS, PROXY_PORT)}


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A coordinator and two hospitals, each in a namespace, all started; a third may reach a proxy only."""
    made_in = tmp_path_factory.mktemp("separate")
    with federation(made_in) as made, hosts(ways_out(made.port)) as network:
        made.prefixes = network.prefixes | {"run": network.prefixes["coordinator"]}
        made.init(address=COORDINATOR_ADDRESS)
        made.start_coordinator()
        for name in HOSPITALS:
            made.enrol(name, file_hospital(name))
        made.start_hospitals(*HOSPITALS)
        yield made
        made.end()


def _reaches(made: Federation, host: str, address: str, port: int) -> bool:
    """Whether a connection from a host comes about."""
    script = f"import socket; socket.create_connection(({address!r}, {port}), timeout=2)"
    done = subprocess.run([*made.prefixes[host], "python3", "-c", script], capture_output=True, check=False)
    return done.returncode == 0


def test_a_study_runs_between_hosts(separate: Federation) -> None:
    separate.run_study("heart-disease", *PLAIN, "--set", "num-rounds=1")

    assert separate.header()["status"] == "completed"
    assert sorted(separate.rounds()[0]["sites"]) == sorted(HOSPITALS)


def test_a_certificate_that_is_renewed_in_the_middle_of_a_run_loses_nothing(separate: Federation) -> None:
    bundle = ("--bundle", str(separate.bundle))
    before = separate.last_run()
    run = separate.start("run", "fl-server", "run", "heart-disease", *bundle, *PLAIN, "--set", "num-rounds=4")
    wait_until(lambda: separate.last_run() != before and bool(separate.rounds()), seconds=120, what="a round")

    separate.run("fl-server", "renew")

    guard = separate.folder / "federation" / "logs" / "guard.jsonl"
    wait_until(lambda: "get the new certificate" in guard.read_text(), seconds=20, what="the new certificate")
    assert run.process.wait(120) == 0
    assert [sorted(each["sites"]) for each in separate.rounds()] == [sorted(HOSPITALS)] * 4


@pytest.mark.parametrize(
    ("host", "address", "port", "is_open"),
    [
        ("cleveland", COORDINATOR_ADDRESS, "port", True),
        ("cleveland", COORDINATOR_ADDRESS, "operator_port", False),
        ("cleveland", "10.77.2.2", "port", False),  # the other hospital
        ("coordinator", "10.77.1.2", "runtime", False),
    ],
)
def test_only_the_hospitals_port_of_the_coordinator_is_reached(
    separate: Federation, host: str, address: str, port: str, is_open: bool
) -> None:
    numbers = {"port": separate.port, "operator_port": separate.operator_port, "runtime": _runtime_port(separate)}

    assert _reaches(separate, host, address, numbers[port]) is is_open


def start_proxy(made: Federation, *, opens: int) -> Service:
    """A proxy that opens connections to one port, and logs them."""
    settings = made.folder / "output" / "tinyproxy.conf"
    settings.write_text(
        f"Port {PROXY_PORT}\nListen {PROXY_ADDRESS}\nAllow 10.77.0.0/16\nConnectPort {opens}\nLogLevel Connect\n"
        "Timeout 600\nMaxClients 50\n"
    )
    made.prefixes["proxy"] = made.prefixes["coordinator"]
    return made.start("proxy", str(PROXY), "-d", "-c", str(settings))


@pytest.fixture(scope="module")
def proxied(separate: Federation) -> Federation:
    """The same, with the hospital that reaches nothing but a proxy."""
    if PROXY is None:
        pytest.skip("tinyproxy is not installed (Debian: tinyproxy-bin)")
    start_proxy(separate, opens=separate.port)
    behind = f'[node]\nproxy = "http://{PROXY_ADDRESS}:{PROXY_PORT}"'
    separate.enrol(BEHIND_PROXY, file_hospital(BEHIND_PROXY).replace("[node]", behind))
    separate.start_hospital(BEHIND_PROXY)
    return separate


def test_a_hospital_that_reaches_nothing_but_a_proxy_takes_part(proxied: Federation) -> None:
    found = proxied.run("fl-client", "doctor", str(proxied.site_file(BEHIND_PROXY)), host=BEHIND_PROXY)
    proxied.run_study("heart-disease", *PLAIN, "--set", "num-rounds=1", "--set", "federation.min-sites=3")

    assert not _reaches(proxied, BEHIND_PROXY, COORDINATOR_ADDRESS, proxied.port)
    assert sorted(proxied.rounds()[0]["sites"]) == sorted((*HOSPITALS, BEHIND_PROXY))
    assert f"through proxy {PROXY_ADDRESS}:{PROXY_PORT}" in " ".join(found.stdout.split())
    assert f"CONNECT {COORDINATOR_ADDRESS}:{proxied.port}" in proxied.services["proxy"].printed()


def test_a_proxy_that_does_not_open_the_port_is_named_by_the_doctor(proxied: Federation) -> None:
    proxied.services["proxy"].end()
    start_proxy(proxied, opens=443)
    try:
        found = proxied.run("fl-client", "doctor", str(proxied.site_file(BEHIND_PROXY)), host=BEHIND_PROXY, check=False)
    finally:
        proxied.services["proxy"].end()
        start_proxy(proxied, opens=proxied.port)

    assert found.returncode != 0
    assert f"let this host CONNECT to {COORDINATOR_ADDRESS}:{proxied.port}" in " ".join(found.stdout.split())


def _runtime_port(made: Federation) -> int:
    text = made.site_file("cleveland").read_text()
    return int(text.partition("runtime-port = ")[2].split()[0])


def test_the_operators_port_is_closed_to_the_coordinators_own_network(separate: Federation) -> None:
    """It is bound to 127.0.0.1, so not even the coordinator's other addresses answer."""
    assert _reaches(separate, "coordinator", "127.0.0.1", separate.operator_port)
    assert not _reaches(separate, "coordinator", COORDINATOR_ADDRESS, separate.operator_port)
