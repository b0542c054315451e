"""The process of one client app: the only place that prepares what is forked, and that turns a fork into an app."""

import ctypes
import os
import signal
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

SLOW_IMPORTS = ("numpy", "torch", "opacus", "pandas", "pyarrow", "flwr.supernode.runtime.run_clientapp")
"""What an app would spend its first seconds on."""
OWN_PACKAGES = ("fl_client", "fl_contract", "fl_host", "fl_server", "privacy", "strategies")
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Environment in which libraries start no threads when they are imported: a fork would lose them."""
ANSWERED = 90
"""Exit code that no app gives by ending itself: 0 could be an app's own."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def warm_up() -> None:
    """Import what apps need and bundles do not bring.

    Guarantees:
        - No thread was started, and no GPU was touched: the process can be forked.

    Raises:
        RuntimeError: A library started a thread, as some do without `ONE_THREAD` in the environment.
    """
    for name in SLOW_IMPORTS:
        import_module(name)
    use_plain_log()
    if (num_threads := len(list(Path("/proc/self/task").iterdir()))) != 1:
        raise RuntimeError(f"threads={num_threads}; expected 1 before apps are forked; a library started one")


def use_plain_log() -> None:
    """Make Flower log each line once and without colours: what it prints becomes a line of a JSON log."""
    from flwr.supercore.logger import FLOWER_LOGGER, update_console_handler

    update_console_handler(colored=False)
    FLOWER_LOGGER.propagate = False


def run_app(address: str, token: str) -> NoReturn:
    """Be the process of one client app, in a forked child; never returns.

    Ends with `ANSWERED` once Flower has handed over the app's answer and the task's end, and with another code if it
    did not come to that.

    Args:
        address: ``host:port`` of the SuperNode's Runtime API.
        token: Of the task.
    """
    try:
        _become_app()
        runtime: Any = import_module("flwr.supernode.runtime.run_clientapp")
        hand_over = runtime.flwr_exit

        def leave(**arguments: Any) -> NoReturn:
            with suppress(SystemExit):
                hand_over(**arguments)
            _end(ANSWERED)

        runtime.flwr_exit = leave
        runtime.run_clientapp(runtime_api_address=address, token=token, insecure=True, parent_pid=os.getppid())
    except BaseException:  # noqa: BLE001 - nothing may return into the executor's loop
        traceback.print_exc()
    _end(1)


def adopt_orphans() -> None:
    """Make this process the parent of what apps start and leave, also outside their process groups."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children() -> set[int]:
    """Processes whose parent is this one."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            parent = path.read_text(errors="replace").rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.add(int(path.parent.name))
    return found


def forget_own_code() -> None:
    """Make the next import of a package of ours find the bundle's, not the installed one that runs this."""
    for name in list(sys.modules):
        if name.split(".")[0] in OWN_PACKAGES:
            del sys.modules[name]


def _become_app() -> None:
    os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the executor ended just now
    Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")  # let the app go before the node does
    _draw_fresh_randomness()
    forget_own_code()


def _draw_fresh_randomness() -> None:
    """Each fork would continue the same random numbers."""
    import numpy as np
    import torch

    np.random.seed()  # noqa: NPY002 - the one that is forked
    torch.seed()


def _end(code: int) -> NoReturn:
    """End at once: threads of the app's, and what it left to be done at exit, do not matter any more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
