"""Promise: what the kernel says of ports, locks and processes is read as it is."""

import fcntl
import os
import socket
from pathlib import Path

import pytest

from fl_host.listening import is_loopback, listening_addresses
from fl_host.running import has_process, is_locked


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
def test_a_listening_port_is_found_with_its_address(address: str) -> None:
    with socket.create_server((address, 0)) as listener:
        port = listener.getsockname()[1]

        assert listening_addresses(port) == [address]

    assert listening_addresses(port) == []


@pytest.mark.parametrize(
    ("line", "addresses"),
    [
        # 10.0.0.5 is 0a 00 00 05, one word of a little-endian machine; port 8444 is 0x20FC
        ("0: 0500000A:20FC 00000000:0000 0A", ["10.0.0.5"]),
        ("0: 0500000A:20FC 00000000:0000 01", []),
        ("0: 00000000000000000000000001000000:20FC 00:0000 0A", ["::1"]),
        ("0: 00000000000000000000000000000000:20FC 00:0000 0A", ["::"]),
    ],
)
def test_the_kernels_table_is_read_for_both_families(tmp_path: Path, line: str, addresses: list[str]) -> None:
    table = tmp_path / "tcp"
    table.write_text(f"sl local_address rem_address st\n{line}\n")

    assert listening_addresses(8444, (table, tmp_path / "absent")) == addresses


@pytest.mark.parametrize(("address", "only_here"), [("127.0.0.1", True), ("::1", True), ("10.0.0.5", False)])
def test_only_loopback_is_loopback(address: str, only_here: bool) -> None:
    assert is_loopback(address) is only_here


def test_a_lock_is_seen_while_it_is_held(tmp_path: Path) -> None:
    path = tmp_path / "running.lock"
    path.touch()
    holder = os.open(path, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)

    held = is_locked(path)
    os.close(holder)

    assert held
    assert not is_locked(path)
    assert not is_locked(tmp_path / "absent")


def test_a_process_is_found_by_all_of_its_words() -> None:
    assert has_process(_own_words())
    assert not has_process([*_own_words(), "no process has this word"])


def _own_words() -> list[str]:
    return [word for word in Path("/proc/self/cmdline").read_text().split("\0") if word]
