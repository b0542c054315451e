"""A bundle that says what its process is like, and that fails in every way an app can: for tests of nodes."""

from pathlib import Path

from flwr.cli.build import build_fab_from_disk

PROJECT = """
[project]
name = "probe"
version = "{version}"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.41.0"]

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.flwr.app]
publisher = "consilium"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = "fl_server.app:app"
clientapp = "fl_client.app:app"

[tool.flwr.app.config]
folder = ""
study = ""
"""

CLIENT = """
import os
import signal
import sys
import time

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

import fl_contract.mark

app = ClientApp()


@app.train()
def train(message, context):
    what = message.content["config"]["do"]
    if what == "raise":
        raise ValueError("patient 4711, /srv/records/4711.csv")
    if what == "none":
        return None
    if what == "exit":
        os._exit(0)
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "daemon":
        read, write = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(write, str(os.getpid()).encode())
                time.sleep(600)
            os._exit(0)
        return Message(RecordDict({"config": ConfigRecord({"daemon": int(os.read(read, 100))})}), reply_to=message)
    if what == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGALRM])
        if os.fork() == 0:
            time.sleep(600)
        while True:
            time.sleep(60)
    mask = os.umask(0)
    os.umask(mask)
    told = {
        "code": fl_contract.mark.__file__,
        "own": sorted(name for name in sys.modules if name.split(".")[0] in ("fl_client", "fl_host", "privacy")),
        "process": os.getpid(),
        "group": os.getpgid(0),
        "mask": mask,
        "variables": sorted(os.environ),
        "command": open("/proc/self/cmdline").read().replace("\\0", " "),
        "noise": [float(torch.randn(1)), float(np.random.rand())],
        "threads": torch.get_num_threads(),
    }
    return Message(RecordDict({"config": ConfigRecord(told)}), reply_to=message)
"""

SERVER = '''
import json
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    """Ask what ``ask-<number>.json`` says, in turn, and write the answer to ``reply-<number>.json``."""
    folder, number = Path(context.run_config["folder"]), 0
    (folder / "ready").touch()
    while True:
        if not (folder / f"ask-{number}.json").exists():
            time.sleep(0.02)
            continue
        asked = json.loads((folder / f"ask-{number}.json").read_text())
        content = RecordDict({"config": ConfigRecord({"do": asked["do"]})})
        start = time.monotonic()
        sent = list(grid.push_messages([Message(content, asked["node"], "train")]))
        replies = []
        while not replies and time.monotonic() - start < asked["patience"]:
            time.sleep(0.05)
            replies = list(grid.pull_messages(sent))
        told = {"seconds": time.monotonic() - start}
        if replies and replies[0].has_error():
            told |= {"code": replies[0].error.code, "reason": replies[0].error.reason}
        elif replies:
            told |= {"content": dict(replies[0].content["config"])}
        (folder / "part").write_text(json.dumps(told))
        (folder / "part").rename(folder / f"reply-{number}.json")
        number += 1
'''


def build_probe(folder: Path, *, version: str = "1.0.0") -> bytes:
    """The bytes of a bundle; another version is another bundle."""
    files = {
        "pyproject.toml": PROJECT.format(version=version),
        "LICENSE": "none\n",
        "fl_client/__init__.py": "",
        "fl_client/app.py": CLIENT,
        "fl_contract/__init__.py": "",
        "fl_contract/mark.py": "",
        "fl_server/__init__.py": "",
        "fl_server/app.py": SERVER,
    }
    root = folder / "probe"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return build_fab_from_disk(root)
