"""A process of test_silent_process.py: one of two ends or stops answering while the other waits for it."""

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

from torch.distributed import distributed_c10d

from vavae import cli
from vavae.commands import doctor
from vavae.errors import UserError
from vavae.training import signals
from vavae.training.parallel import World, processes
from vavae.training.signals import stop_on_signal


def vanish(world: World) -> None:
    """The second process stops answering, and the timeout of a step is one second."""
    distributed_c10d._set_pg_timeout(timedelta(seconds=1))
    if not world.first:
        os.kill(os.getpid(), signal.SIGSTOP)
    world.any(False)


def wait_for_ever(world: World, waits: str) -> None:
    """The second process stops answering; the first waits in C++, with the handlers of a run."""
    if not world.first:
        os.kill(os.getpid(), signal.SIGSTOP)
    signals._GRACE = 0.1
    with stop_on_signal():
        Path(waits).touch()
        world.wait()


def fail(world: World) -> None:
    """The second process fails by a user's mistake."""
    if not world.first:
        raise UserError("cannot read image x.png")
    world.any(False)


def die(world: World) -> None:
    """The second process is killed."""
    if not world.first:
        os.kill(os.getpid(), signal.SIGKILL)
    world.wait()


def be_long(world: World) -> None:
    """The first process works alone for longer than a step may take."""
    distributed_c10d._set_pg_timeout(timedelta(seconds=1))
    world.once(lambda: time.sleep(2))


def run(how: str, *given: str) -> None:
    """Call the function `how` within the command line, as one of two processes."""

    def work(config: object) -> None:
        with processes("cpu") as world:
            world.wait()
            globals()[how](world, *given)

    doctor.run = work  # type: ignore[assignment]
    sys.argv[1:] = ["doctor"]
    cli.main()


if __name__ == "__main__":
    run(*sys.argv[1:])
