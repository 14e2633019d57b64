"""The threads of a process group end with the group: one that is left aborts the interpreter when it exits."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# torch imports `torch._dynamo` during other work, and some of its modules keep the group.
PROGRAM = """
import sys
from pathlib import Path
import torch.distributed as dist
from vavae.training.parallel import {start}

def names():
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]

try:
    with {start}({arguments}):
        import torch._dynamo
        dist.all_gather_object([None, None], dict(enumerate(range(200))))
        assert any("gloo" in name for name in names()), "the threads have other names"
        if "fail" in sys.argv:
            raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
left = [name for name in names() if "gloo" in name]
print(left)
sys.exit(len(left))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="names of threads are read from /proc")
@pytest.mark.parametrize(
    "start, arguments, how",
    [
        ("sharing_processes", "", "end"),
        ("sharing_processes", "", "fail"),
        ("processes", '"cpu"', "end"),
    ],
)
def test_threads_end_with_the_group(start: str, arguments: str, how: str) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    program = PROGRAM.format(start=start, arguments=arguments)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, how],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in running:
        out, errors = process.communicate(timeout=280)
        assert process.returncode == 0, f"ended with {process.returncode}, threads left: {out}\n{errors[-2000:]}"
