"""Promise: a host's doctor measures the host, and says from which number on something is wrong."""

import shutil
from pathlib import Path

import pytest

from fl_host.checks import Status
from fl_host.machine_checks import (
    check_disk,
    check_gpu,
    check_private_files,
    check_time_service,
    check_versions,
    folder_bytes,
)


def test_this_installation_is_in_the_ranges_of_the_project() -> None:
    finding = check_versions()

    assert finding.status is Status.OK
    assert "flwr 1.41.0" in finding.text


def test_a_package_outside_its_range_is_named_with_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_host.machine_checks.requires", lambda name: ["numpy<1", "absent-package>=2"])

    finding = check_versions()

    assert finding.status is Status.FAILED
    assert "expected <1" in finding.text
    assert "absent-package is missing" in finding.text


@pytest.mark.parametrize(("share", "status"), [(2.0, Status.FAILED), (0.5, Status.WARNING), (0.1, Status.OK)])
def test_a_disk_fails_below_what_is_needed_and_warns_below_three_times_that(
    tmp_path: Path, share: float, status: Status
) -> None:
    needed = int(shutil.disk_usage(tmp_path).free * share)

    finding = check_disk(tmp_path, needed=needed, what="a run")

    assert finding.status is status


def test_the_size_of_a_folder_is_that_of_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "model").write_bytes(b"12345")
    (tmp_path / "log").write_bytes(b"123")

    assert folder_bytes(tmp_path) == 8
    assert folder_bytes(tmp_path / "absent") == 0


def test_no_gpu_is_no_failure() -> None:
    assert check_gpu().status is Status.OK


def test_a_file_that_others_may_read_is_named(tmp_path: Path) -> None:
    private, public = tmp_path / "node.key", tmp_path / "executor.secret"
    for path, mode in ((private, 0o600), (public, 0o644)):
        path.write_text("secret")
        path.chmod(mode)

    finding = check_private_files([private, public, tmp_path / "absent"])

    assert finding.status is Status.FAILED
    assert "executor.secret" in finding.text
    assert "node.key" not in finding.text


def test_private_files_are_counted(tmp_path: Path) -> None:
    private = tmp_path / "node.key"
    private.write_text("secret")
    private.chmod(0o600)

    assert check_private_files([private]).text.startswith("1 files")


def test_the_kernel_says_whether_the_clock_is_kept() -> None:
    assert check_time_service().status in (Status.OK, Status.WARNING)
