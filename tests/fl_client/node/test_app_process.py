"""What is forked is warm, has one thread, no GPU, and none of our own code; each fork draws its own numbers."""

import os
import subprocess
import sys

import pytest

from fl_client.node.app_process import ONE_THREAD

pytestmark = pytest.mark.slow

PROGRAM = """
import os, sys
from fl_client.node import app_process
import fl_client.settings

app_process.warm_up()
assert len(os.listdir("/proc/self/task")) == 1
assert {"torch", "opacus", "pandas"} <= set(sys.modules)
import torch
assert not torch.cuda.is_initialized()

def draw(write):
    app_process._become_app()
    import numpy as np
    own = [name for name in sys.modules if name.split(".")[0] in app_process.OWN_PACKAGES]
    os.write(write, f"{float(torch.rand(1))} {np.random.rand()} {len(own)} {os.getpgid(0) == os.getpid()}\\n".encode())
    os._exit(0)

for _ in range(2):
    read, write = os.pipe()
    if os.fork() == 0:
        draw(write)
    os.wait()
    print(os.read(read, 1000).decode().strip())
"""


def test_two_forks_of_a_warm_process_share_no_random_number_and_none_of_our_code() -> None:
    environment = {"PATH": os.environ["PATH"], **ONE_THREAD}

    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    first, second = (line.split() for line in done.stdout.splitlines())
    assert (first[2:], second[2:]) == (["0", "True"], ["0", "True"])
    assert first[0] != second[0]
    assert first[1] != second[1]
