"""The threads of a process group end with the group: one that is left aborts the interpreter when it exits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# torch imports `torch._dynamo` during other work, and some of its modules keep the group. So the first process imports
# it in the group. The processes are forked after all other imports, and each ends as an interpreter of its own.
PROGRAM = """
import gc
import os
import socket
import sys
from pathlib import Path
import torch.distributed as dist
from vavae.training.parallel import processes, sharing_processes

def names():
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]

def work(group, fails):
    try:
        with group():
            if not fails and os.environ["RANK"] == "0":
                import torch._dynamo
            dist.all_gather_object([None, None], dict(enumerate(range(200))))
            assert any("gloo" in name for name in names()), "the threads have other names"
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    left = [name for name in names() if "gloo" in name]
    assert not left, f"threads left: {left}"

gc.freeze()  # what the processes share is not searched for garbage, which would copy it
for group, fails in ((sharing_processes, True), (lambda: processes("cpu"), False)):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(found.getsockname()[1])
    running = []
    for rank in "01":
        running.append(os.fork())
        if not running[-1]:
            os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
            work(group, fails)
            sys.exit()
    ended = [os.waitpid(process, 0)[1] for process in running]
    assert ended == [0, 0], f"{group}, {fails = }: ended with {ended}"
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="names of threads are read from /proc")
def test_threads_end_with_the_group() -> None:
    """At the end of the block, by an interrupt, and in both kinds of groups."""
    shared = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **shared}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
