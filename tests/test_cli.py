"""The command line: help, exit codes, errors of one line."""

import errno
import os
import re
import signal
import subprocess
import sys
from contextlib import redirect_stderr
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from children import CONTEXT
from help_texts import text_of
from PIL import Image

from vavae.cli import COMMANDS, run
from vavae.commands import doctor
from vavae.errors import RunError
from vavae.extras import EXTRAS


def vavae(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "vavae", *arguments], capture_output=True, text=True)


def loaded_by(*arguments: str) -> tuple[str, set[str]]:
    """Return what a command line prints, and the packages and modules that it has imported."""
    script = "import sys; from vavae.cli import run; code = run(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    script += "; sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return done.stdout, set(done.stderr.split())


def test_help_imports_nothing_large() -> None:
    """Help takes 0.1 s; torch alone takes seconds to import."""
    listed, loaded = loaded_by("--help")
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", listed, re.MULTILINE)
    of_command, loaded_too = loaded_by("train-dit", "small/transformer", "--help")
    assert of_command.startswith("usage: vavae train-dit [RECIPE] [--key value ...]\n")
    large = {"torch", "numpy", "scipy", "PIL", "jsonargparse", "safetensors", "matplotlib"}
    assert "vavae" in loaded and not (loaded | loaded_too) & large


@pytest.mark.slow
def test_a_sample_imports_only_what_it_uses(tmp_path: Path) -> None:
    """Torch's compiler and sympy take longer to import than torch."""
    _, loaded = loaded_by("sample", "--count", "1", "--steps", "2", "--output", str(tmp_path / "samples"))
    unused = {"torch._dynamo", "torch.distributed.tensor", "torch.utils.flop_counter", "sympy", "scipy", "sklearn"}
    unused |= {"transformers", "huggingface_hub", "matplotlib", "tensorboard", "vavae.training.trainer", "vavae.losses"}
    assert "vavae.stages.sample" in loaded and not loaded & unused


def test_recipes_are_listed_without_torch() -> None:
    assert "torch" not in loaded_by("recipes")[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_current(name: str) -> None:
    """Compare without spaces, since lines may break elsewhere."""
    stored = (resources.files("vavae") / f"help/{name}.txt").read_text(encoding="utf-8")
    assert "".join(stored.split()) == "".join(text_of(name).split()), "the options have changed: run make help-texts"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_types_and_defaults(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    text = capsys.readouterr().out
    rows = re.split(r"^  --", text, flags=re.MULTILINE)[1:]
    own = [row for row in rows if not re.match(r"(config|print_config)\b", row)]
    assert own
    for row in own:
        flat = " ".join(row.split())
        assert re.search(r"\(type: .+, default: .+\)", flat), f"no type or default: {flat}"
        assert not re.match(r"\S+ \S+ \(type", flat), f"no help text: {flat}"


@pytest.mark.parametrize("name", COMMANDS)
def test_printed_recipe_is_read_back(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run([name, "--print_config"]) == 0
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(capsys.readouterr().out)
    assert run([name, "--config", str(recipe), "--print_config"]) == 0
    assert capsys.readouterr().out == recipe.read_text()


MISTAKES = {
    "unknown command": (["tran-dit"], "did you mean 'train-dit'"),
    "unlike any command": (["xyz"], "unknown command 'xyz'; 'vavae --help' lists the commands"),
    "unknown key": (["demo", "--shade", "red"], "--shade"),
    "wrong type": (["demo", "--size", "big"], "size"),
    "wrong value": (["demo", "--size", "33"], "size must be a multiple of 4 of at least 16, got 33"),
    "stray argument": (["doctor", "here.yaml", "there"], "unexpected argument 'there'"),
    "missing recipe": (["train-tokenizer", "no-such.yaml"], "no-such.yaml"),
    "missing folder of images": (["demo", "--images", "/no/such/folder"], "/no/such/folder"),
    "missing tokenizer": (["encode", "--tokenizer", "/no/such/tokenizer"], "/no/such/tokenizer"),
    "missing latents": (["train-dit", "--latents", "/no/such/latents"], "/no/such/latents"),
    "missing generator": (["sample", "--generator", "/no/such/generator"], "/no/such/generator"),
    "no device": (["bench", "--device", "cuda:99"], "cuda:99"),
    "unknown device": (["doctor", "--device", "toaster"], "toaster"),
    "device of no use": (["doctor", "--device", "meta"], "got 'meta', which is not on this machine"),
    "no batch": (["bench", "--batch_size", "-1"], "batch_size must be at least 1, got -1"),
    "empty batch": (["bench", "--batch_size", "0"], "batch_size must be at least 1, got 0"),
    "results in a folder": (["bench", "--output", "."], "output must be a file, got ."),
    "records in no folder": (["evaluate", "tokenizer", "demo", "--output", "/dev/null/x.json"], "output: /dev/null/x"),
    "too few steps": (["sample", "--steps", "1"], "steps must be at least 2 grid points, got 1"),
    "negative grid": (["sample", "--grid_columns", "-1"], "got -1"),
    "output in no folder": (["convert", "demo", "/dev/null/x"], "output: /dev/null/x cannot be written"),
    "output on a read-only disk": (["convert", "demo", "/sys/x"], "output: /sys/x cannot be written"),
    "unknown asset": (["assets", "fetch", "dinov2-smal-focus"], "did you mean 'dinov2-small-focus'"),
    "asset not in the cache": (["assets", "verify", "cifar10"], "asset 'cifar10' is not in the cache"),
    "fetch nothing": (["assets", "fetch"], "names must have at least one asset"),
    "wrong factor": (
        ["train-tokenizer", "--data.size", "40"],
        "data.size must be a multiple of the tokenizer's factor 16, got 40",
    ),
    "small images": (
        ["train-tokenizer", "--data.size=8", "--tokenizer.channel_multipliers=1,2", "--tokenizer.attention_levels=1"],
        "data.size must be at least 16 pixels a side for objective.perceptual with vgg16, got 8",
    ),
    "negative weight": (
        ["train-dit", "--flow.direction_weight", "-3"],
        "flow.direction_weight must be at least 0 and finite, got -3.0",
    ),
    "weight that is not a number": (
        ["train-dit", "--flow.direction_weight", ".nan"],
        "flow.direction_weight must be a finite number, got nan",
    ),
    "negative switch": (
        ["train-dit", "--flow.uniform_after_images", "-5"],
        "flow.uniform_after_images must be at least 0, or null for never, got -5",
    ),
    "label dropout": (
        ["train-dit", "--transformer.label_dropout", "2.0"],
        "label_dropout must be from 0 to 1, got 2.0",
    ),
    "size of no known name": (
        ["train-dit", "--transformer.size", "XXL/1", "--print_config"],
        "size must be one of S/1, S/2, B/1",
    ),
    "counted labels": (["sample", "--labels", "3", "--count", "100"], "count must be left out with labels"),
    "comparison in a file": (
        ["evaluate", "compare", "a.json", "b.json", "--output", "c.json"],
        "output must be left out for compare: it is an option of tokenizer and generator and samples",
    ),
    "guidance without its label": (
        ["train-dit", "--transformer.label_dropout", "0", "--sampling.guidance_scale", "3"],
        "sampling.guidance_scale must be 1 with transformer.label_dropout 0, which never trains without a label",
    ),
    "muon in shards": (
        ["train-dit", "--optimizer.kind", "muon", "--training.parallel", "shard"],
        "optimizer.kind muon needs whole matrices",
    ),
    "conflict": (["train-tokenizer", "--teacher.cache_features", "--data.flip"], "teacher.cache_features"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(
    mistake: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAVAE_CACHE", str(tmp_path / "cache"))
    arguments, named = MISTAKES[mistake]
    assert run(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert named in error
    assert error.startswith("vavae: ") and len(error.splitlines()) == 1
    assert "Traceback" not in error


def test_last_words_are_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["assets", "list", "cifar10", "mobile-sam"]) == 0
    shown = re.findall(r"^(\S+)  [\d,]+ MB", capsys.readouterr().out, re.MULTILINE)
    assert shown == ["cifar10", "mobile-sam"]
    assert run(["evaluate", "tokenizer", "a", "b c", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"] == ["a", "b c"]


@pytest.mark.parametrize(
    "options, key, expected",
    [
        (["--guidance_scales", "3"], "guidance_scales", [3.0]),
        (["--guidance_scales=1,1.5"], "guidance_scales", [1.0, 1.5]),
        (["--guidance_scales", "[2]"], "guidance_scales", [2.0]),
        (["--metrics", "kid"], "metrics", ["kid"]),
        (["--metrics", "kid, sfid"], "metrics", ["kid", "sfid"]),
        (["--model", "a, b"], "model", ["a, b"]),
    ],
)
def test_a_list_needs_no_brackets(options: list[str], key: str, expected: list[object], capsys) -> None:
    assert run(["evaluate", *options, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)[key] == expected
    assert run(["evaluate", "--metrics", "kidd"]) == 2
    assert "metrics" in capsys.readouterr().err


def test_unknown_key_in_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("training:\n  images: 100\n  bacth_size: 8\n")
    assert run(["train-tokenizer", str(recipe)]) == 2
    assert "bacth_size" in capsys.readouterr().err


NO_RECIPES = {
    "a list": b"- 1\n- 2\n",
    "a word": b"hello\n",
    "broken YAML": b"training: [1, 2\n  x: {",
    "tabs": b"training:\n\timages: 5\n",
    "not text": bytes(range(256)),
    "nothing": b"# nothing yet\n",
}


@pytest.mark.parametrize("kind", NO_RECIPES)
def test_files_that_are_not_recipes(kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "my-recipe.yaml"
    recipe.write_bytes(NO_RECIPES[kind])
    for arguments in ([str(recipe)], ["--config", str(recipe)]):
        assert run(["doctor", *arguments]) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith(f"vavae: {recipe}: ") and len(error.splitlines()) == 1


def test_folder_without_readable_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(b"not a picture")
    assert run(["demo", "--images", str(images), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert str(images) in error and "a.png" in error


def test_folder_with_too_few_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(12):
        Image.new("RGB", (40, 40), (20 * number, 0, 0)).save(images / f"{number}.png")
    assert run(["demo", "--quick", "--images", str(images), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert str(images) in error and "15 images" in error and len(error.splitlines()) == 1


def test_no_arguments() -> None:
    done = vavae()
    assert done.returncode == 2 and "commands:" in done.stdout
    assert vavae("--version").stdout.startswith("vavae 0")


FAULTS = {
    "full disk": (OSError(errno.ENOSPC, "No space left on device", "runs/x"), "runs/x"),
    "full disk, from a library": (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left"),
    "file for a folder": (FileExistsError(errno.EEXIST, "File exists", "runs/x"), "File exists: runs/x"),
    "file above a folder": (NotADirectoryError(errno.ENOTDIR, "Not a directory", "runs/x"), "Not a directory: runs/x"),
    "folder for a file": (IsADirectoryError(errno.EISDIR, "Is a directory", "runs/x"), "Is a directory: runs/x"),
    **{
        name: (OSError(getattr(errno, name), os.strerror(getattr(errno, name)), "runs/x"), "runs/x; finished work")
        for name in ("EFBIG", "EIO", "ESTALE", "EMFILE", "ENFILE", "EBUSY", "ENOTCONN", "ETIMEDOUT", "EPERM", "ENOENT")
    },
    "memory of the machine": (MemoryError("Unable to allocate 9 GiB"), "smaller batch"),
    "memory": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), "smaller batch"),
    "memory of Apple's GPU": (RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"), "smaller batch"),
    "failed run": (RunError("the loss was not finite"), "the loss was not finite"),
    "stop": (KeyboardInterrupt("stopped after 3 images; the same command resumes"), "the same command resumes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_machine_are_one_line(
    fault: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error, named = FAULTS[fault]

    def fail(config: object) -> None:
        raise error

    monkeypatch.setattr("vavae.commands.doctor.run", fail)
    assert run(["doctor"]) == 1
    message = capsys.readouterr().err.strip()
    assert named in message and len(message.splitlines()) == 1


def test_cpu_out_of_memory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # More than any machine can address, so that it fails where memory is overcommitted too.
    monkeypatch.setattr("vavae.commands.doctor.run", lambda config: torch.empty(2**60, dtype=torch.uint8))
    assert run(["doctor"]) == 1
    message = capsys.readouterr().err.strip()
    assert message.startswith("vavae: out of memory: ") and len(message.splitlines()) == 1


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"


@pytest.mark.parametrize("error", [RuntimeError(GLOO), RunError(f"x: the checkpoint could not be written ({GLOO})")])
def test_lost_process_is_one_line(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: object) -> None:
        raise error

    monkeypatch.setattr("vavae.commands.doctor.run", fail)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["doctor"]) == 1
    assert capsys.readouterr().err == (
        "vavae: another process of this run has ended, or no longer answers; see its message\n"
    )


def test_other_gloo_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: object) -> None:
        raise RuntimeError("[enforce fail at gloo/transport/tcp/pair.cc:474] op.preamble.length <= op.nbytes. 8 vs 4")

    monkeypatch.setattr("vavae.commands.doctor.run", fail)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError):
        run(["doctor"])


def write_to_a_full_disk(errors: str) -> None:
    """Run the program in this process, a new one, with a command that writes as TensorBoard does."""
    from tensorboard.summary.writer import event_file_writer

    from vavae import cli
    from vavae.commands import doctor

    def write(config: object) -> None:
        writer = event_file_writer._AsyncWriter(Path("/dev/full").open("wb", buffering=0))  # noqa: SIM115
        writer.write(b"x")
        writer._worker.join()
        writer.write(b"x")

    doctor.run = write
    sys.argv = ["vavae", "doctor"]
    with Path(errors).open("w") as file, redirect_stderr(file):
        cli.main()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_in_the_thread_of_tensorboard(tmp_path: Path) -> None:
    child = CONTEXT.Process(target=write_to_a_full_disk, args=(str(tmp_path / "errors"),))
    child.start()
    child.join()
    message = "vavae: No space left on device: while reading or writing; finished work is kept"
    assert child.exitcode == 1 and set((tmp_path / "errors").read_text().splitlines()) == {message}


def test_interrupt_during_an_import(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vavae.cli.importlib.import_module", stop)
    assert run(["demo"]) == 1
    message = capsys.readouterr().err.strip()
    assert "the same command" in message and len(message.splitlines()) == 1


def test_signal_during_an_import(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy, imported by torch's C++, turns a KeyboardInterrupt into another error."""

    def load(name: str) -> Any:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("cannot load module more than once per process") from None
        return doctor

    monkeypatch.setattr("vavae.cli.importlib.import_module", load)
    assert run(["doctor"]) == 1
    assert "the same command" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_sigterm_and_sigint_stop_a_command(
    handler: Any, number: signal.Signals, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script's background jobs start with SIGINT ignored."""
    monkeypatch.setattr("vavae.commands.doctor.run", lambda config: signal.raise_signal(number))
    former = signal.signal(signal.SIGINT, handler)
    try:
        assert run(["doctor"]) == 1
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, former)
    error = capsys.readouterr().err.strip()
    assert "the same command" in error and len(error.splitlines()) == 1


def test_defects_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: object) -> None:
        raise IndexError("a bug")

    monkeypatch.setattr("vavae.commands.doctor.run", fail)
    with pytest.raises(IndexError):
        run(["doctor"])


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run(["doctor", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "auto means" in text and f"torch {torch.__version__.split('+')[0]}" in text.replace("\n", " ")
    flat = " ".join(text.split())
    assert all(f"extra {extra} " in flat for extra in EXTRAS)
    assert "not installed (pip install 'vavae[wandb]'): logging to Weights & Biases" in flat


@pytest.mark.parametrize(
    "given, expected",
    [
        ("3", [3]),
        ("3,5", [3, 5]),
        ("[1, 2]", [1, 2]),
        ("cat,3", ["cat", 3]),
        ("great white shark", ["great white shark"]),
        ("no, 1.5", ["no", "1.5"]),
        ('["tench, Tinca tinca", 3]', ["tench, Tinca tinca", 3]),
    ],
)
def test_labels_are_numbers_and_names(given: str, expected: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sample", "--labels", given, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["labels"] == expected


@pytest.mark.parametrize("option", ["--data.images", "--output", "--tokenizer"])
def test_too_long_path(option: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = {"--data.images": "demo", "--output": str(tmp_path / "out"), "--tokenizer": "demo"}
    arguments[option] = "x" * 5000
    assert run(["encode", "--data.size", "32", *(word for pair in arguments.items() for word in pair)]) == 2
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1 and len(message) < 200 and "xxx" in message
