"""Checks of the host itself: versions, disk, GPU, private files, time service. The only place for their limits."""

import ctypes
import os
import platform
import shutil
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from fl_host.checks import Finding, failed, ok, warning
from fl_host.private_files import check_private

PROJECT = "consilium"

GIGABYTE = 1e9
LOG_BYTES = 100_000_000
"""Of one process: ten files of 10 MB."""
ROOMY = 3
"""Below this many times what is needed, a person should look."""

STA_UNSYNC, STATUS_WORD = 0x0040, 5
TIMEX_BYTES = 208


def check_versions() -> Finding:
    """Whether Python and every package of ours are in the ranges that this release was made for."""
    wrong, unmet = [], []
    for line in requires(PROJECT) or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            unmet.append(requirement.name)
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found}, expected {requirement.specifier}")
    if wrong or unmet:
        told = "; ".join(wrong + [f"{name} is missing" for name in unmet])
        return failed(told, "install again what was tested: pip install -c constraints.txt consilium")
    return ok(f"{PROJECT} {version(PROJECT)}, Python {platform.python_version()}, flwr {version('flwr')}")


def check_disk(folder: Path, *, needed: int, what: str) -> Finding:
    """Whether the disk of a folder has room for what will be written there.

    Args:
        folder: Any on that disk.
        needed: Bytes.
        what: That these bytes are.
    """
    free = shutil.disk_usage(folder).free
    text = f"{_gigabytes(free)} free at {folder}; {what} may need {_gigabytes(needed)}"
    if free < needed:
        return failed(text, "free some space, or move the folder to a larger disk; nothing is lost while it is stopped")
    if free < ROOMY * needed:
        return warning(text, f"make room before the next run: {_gigabytes(ROOMY * needed)} is comfortable")
    return ok(text)


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder, 0 if it is absent; a file that vanishes meanwhile counts nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(parent, name).lstat().st_size
            except FileNotFoundError:
                continue
    return total


def check_gpu() -> Finding:
    """Which GPUs PyTorch can use; none is no failure."""
    import torch

    if not torch.cuda.is_available():
        return ok(f"none that PyTorch {torch.__version__} can use; training runs on {os.cpu_count()} cores")
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return ok(", ".join(f"{device.name}, {_gigabytes(device.total_memory)}" for device in devices))


def check_private_files(paths: Iterable[Path]) -> Finding:
    """Whether nobody but their owner can read or change these files and folders; absent ones are not looked at."""
    present = [path for path in paths if path.exists()]
    wrong: list[str] = []
    for path in present:
        try:
            check_private(path)
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        return failed("; ".join(wrong), "chown to the account that runs Consilium; chmod 600 files, 700 folders")
    return ok(f"{len(present)} files and folders, their owner's alone")


def check_time_service() -> Finding:
    """Whether something keeps this host's clock: the kernel knows, also inside a container."""
    libc = ctypes.CDLL(None, use_errno=True)
    words = (ctypes.c_long * (TIMEX_BYTES // ctypes.sizeof(ctypes.c_long)))()  # all zero: read, set nothing
    if not hasattr(libc, "ntp_adjtime") or libc.ntp_adjtime(ctypes.byref(words)) < 0:
        return warning(
            "the kernel does not say whether the clock is kept", "check by hand: timedatectl, chronyc tracking"
        )
    if words[STATUS_WORD] & STA_UNSYNC:
        return warning(
            "nothing keeps this host's clock",
            "start chrony or systemd-timesyncd (timedatectl set-ntp true); in a container or VM, on its host",
        )
    return ok("the kernel's clock is kept by a time service")


def _gigabytes(count: float) -> str:
    return f"{count / GIGABYTE:.1f} GB"
