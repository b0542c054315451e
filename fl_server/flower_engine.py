"""The Flower engine: the same apps on Flower's simulation (Ray), through a SuperLink of our own on loopback."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fl_contract.errors import RunError
from fl_contract.study import Scalar
from fl_server.local_grid import PROJECT

QUIET_FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Switches off telemetry, update checks and installation of packages in everything we start."""

START_SECONDS = 60.0
LOG_FILE = "flower.log"


def run_on_flower(run_config: Mapping[str, Scalar], *, num_nodes: int, out: Path) -> None:
    """Run a study by ``flwr run`` and check how it ended: Flower's own command exits 0 when a run failed.

    Args:
        run_config: Of the run.
        num_nodes: Simulated nodes.
        out: Folder for Flower's own state and log.

    Raises:
        RunError: Flower could not start, or the run failed; names the log.
    """
    home = (out / "flower").resolve()
    home.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **QUIET_FLOWER, "FLWR_HOME": str(home), "PATH": _path_with_our_commands()}
    log_path = out / LOG_FILE
    with log_path.open("ab") as log, _superlink(home, environment, log_path):
        settings = " ".join(f"{key}={json.dumps(value)}" for key, value in run_config.items())
        command = [_command("flwr"), "run", str(PROJECT), "local", "--stream", "--run-config", settings]
        command += ["--federation-config", f"num-supernodes={num_nodes}"]
        subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
        status = _last_status(environment)
    if status != "finished:completed":
        raise RunError(f"Flower's run ended as {status!r}; expected 'finished:completed'; see {log_path}")


@contextmanager
def _superlink(home: Path, environment: Mapping[str, str], log_path: Path) -> Iterator[None]:
    port = _free_port()
    address = f"127.0.0.1:{port}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "{address}"\ninsecure = true\n'
    )
    command = [_command("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-file", str(home / "superlink.log")]
    command += ["--database", str(home / "state.db"), "--disable-runtime-dependency-installation"]
    process = subprocess.Popen(
        command, env=dict(environment), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait_until_healthy(process, address, log_path)
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], address: str, log_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RunError(f"flower-superlink ended with code {process.returncode} before it was ready; see {log_path}")
        try:
            with urllib.request.urlopen(f"http://{address}/health", timeout=1) as response:
                if response.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise RunError(f"flower-superlink was not ready at {address} within {START_SECONDS:g} s; see {log_path}")


def _last_status(environment: Mapping[str, str]) -> str:
    result = subprocess.run(
        [_command("flwr"), "ls", "local", "--format", "json"],
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        runs = json.loads(result.stdout)["runs"]
    except (json.JSONDecodeError, KeyError):
        return "unknown"
    return str(max(runs, key=lambda run: str(run["pending-at"]))["status"]) if runs else "not started"


def _command(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _path_with_our_commands() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
