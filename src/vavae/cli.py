"""The command `vavae`: parse a command line and run the command's module.

Exit codes: 0 done, 1 the run failed or was interrupted, 2 bad input.
"""

import atexit
import errno
import gc
import importlib
import io
import os
import re
import sys
import threading
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

from vavae.errors import RunError, UserError, did_you_mean, fault_number, memory_ran_out, one_line, printable
from vavae.training.signals import interrupted_by_signals, signals_later
from vavae.version import __version__


class Command(NamedTuple):
    """One command: its module has `Config` and `run(config)`."""

    module: str  # under `vavae`
    summary: str  # one line for the list of commands
    positionals: tuple[str, ...] = ("config",)  # options that leading words are values of; `NAME+` takes all the rest


COMMANDS = {
    "demo": Command("demo.run", "the whole path on real images, on the CPU, with a report page"),
    "train-tokenizer": Command("stages.train_tokenizer", "stage 1: train a visual tokenizer, aligned with a teacher"),
    "encode": Command("stages.encode", "images -> latent shards and their statistics"),
    "train-dit": Command("stages.train_dit", "stage 2: train a diffusion transformer on latents"),
    "train-joint": Command("stages.train_joint", "both stages at once: tokenizer and transformer together (REPA-E)"),
    "sample": Command("stages.sample", "labels or counts -> PNGs, a grid, an npz", ("generator",)),
    "evaluate": Command("stages.evaluate", "reconstruction, generation and latent metrics", ("what", "model+")),
    "frontier": Command("frontier.run", "the paper's tables and figures as one run"),
    "serve": Command("commands.serve", "a local web page: sample, reconstruct, interpolate", ("model",)),
    "convert": Command("commands.convert", "published files <-> folders of ours <-> diffusers", ("source", "output")),
    "recipes": Command("commands.recipes", "list the recipes in the package, or print one to edit", ("name",)),
    "estimate": Command("commands.estimate", "memory, disk and hours of a training, in advance", ("recipe",)),
    "models": Command("commands.models", "list the models that have short names, or show one", ("name",)),
    "assets": Command("commands.assets", "list, fetch, verify pretrained weights and data sets", ("action", "names+")),
    "bench": Command("commands.bench", "throughput and memory of each stage on this machine"),
    "doctor": Command("commands.doctor", "what this machine can run, and what is missing"),
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: vavae COMMAND [RECIPE] [--key value ...]\n\n"
        "Train visual tokenizers aligned with vision foundation models, and fast latent\n"
        "diffusion transformers on them.\n\n"
        f"commands:\n{rows}\n\n"
        "vavae COMMAND --help         every option with its type and default\n"
        "vavae COMMAND --print_config the resolved recipe, to save and edit\n"
        "vavae --version              the version"
    )


def _fail(message: str, code: int) -> int:
    print(f"vavae: {printable(message)}", file=sys.stderr)
    return code


# Messages of gloo and NCCL when another process has ended or does not answer.
_LOST = re.compile(
    r"gloo.*(closed by peer|reset by peer|broken pipe|timed out|timeout|connectFullMesh)|NCCL.*remote process exited",
    re.IGNORECASE,
)


def _one_of_several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _lost_process(error: Exception) -> str | None:
    """Return one line for an error that only shows that another process failed; None for any other error."""
    # The store in which processes find each other has its own exceptions.
    lost = type(error).__name__ in ("DistNetworkError", "DistStoreError") or _LOST.search(one_line(error))
    if lost and _one_of_several():
        return "another process of this run has ended, or no longer answers; see its message"
    return None


def _machine_fault(error: BaseException) -> str | None:
    """Return one line for a fault of the machine (full disk, no permission, out of memory); None for a defect."""
    if memory_ran_out(error):
        return f"out of memory: use a smaller batch or image size ({one_line(error)[:200]})"
    number = fault_number(error)
    if number is None:
        return None
    if not isinstance(error, OSError):
        return f"{os.strerror(number).lower()} ({one_line(error)[:200]}); finished work is kept"
    return f"{os.strerror(number)}: {error.filename or 'while reading or writing'}; finished work is kept"


def run(arguments: Sequence[str], own_process: bool = False) -> int:
    """Run one command line (without the program's name) and return its exit code.

    Args:
        arguments: The command line.
        own_process: Whether the process does nothing else. Then modules are left out of the search for garbage, which
            would take an eighth of the time of the imports.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"vavae {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        return _fail(f"unknown command '{name}'{did_you_mean(name, COMMANDS)}; 'vavae --help' lists the commands", 2)
    command = COMMANDS[name]
    if {"-h", "--help"} & set(rest):
        # Made beforehand by tools/help_texts.py, since the options are in modules that import torch.
        print((resources.files("vavae") / f"help/{name}.txt").read_text(encoding="utf-8"), end="")
        return 0
    try:
        with interrupted_by_signals():
            with signals_later():  # an import that is interrupted half-way, such as torch's, fails in its own ways
                if own_process:
                    gc.disable()
                from vavae.config import parse_command_line

                stage = importlib.import_module(f"vavae.{command.module}")
                if own_process:
                    gc.freeze()
                    gc.enable()
            config = parse_command_line(stage.Config, rest, f"vavae {name}", command.positionals)
            stage.run(config)
    except UserError as error:
        return _fail(str(error), 2)
    except RunError as error:
        return _fail(_lost_process(error) or str(error), 1)
    except KeyboardInterrupt as interrupt:
        # Training raises this after it has saved its state; the text says how to resume.
        return _fail(str(interrupt) or "interrupted; finished work is kept, and the same command resumes it", 1)
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 1
    except BrokenPipeError:
        return 0
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return _fail(f"{error.strerror}: {str(error.filename)[:100]}…", 2)
        if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
            return _fail(f"a path must be UTF-8 here, got {str(error.object)[:200]}: choose another name", 2)
        message = _lost_process(error) or _machine_fault(error)
        if message is None:
            raise
        return _fail(message, 1)
    return 0


def _fail_in_thread(failure: threading.ExceptHookArgs) -> None:
    """Print one line for a fault of the machine in a library's thread, for example TensorBoard's, as `run` does."""
    message = failure.exc_value and _machine_fault(failure.exc_value)
    if message:
        _fail(message, 1)
    else:
        threading.__excepthook__(failure)


def main() -> None:
    """Run the command line of this process; the entry point of the console script."""
    threading.excepthook = _fail_in_thread
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # like stderr: file names may be in another encoding
    code = 1

    def leave() -> None:
        if code:
            sys.stdout.flush()
            os._exit(code)

    if _one_of_several():
        # A group that failed is not destroyed, and its threads could abort an interpreter that ends normally.
        # Registered first, so called last.
        atexit.register(leave)
    code = run(sys.argv[1:], own_process=True)
    sys.exit(code)
