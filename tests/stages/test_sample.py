"""`vavae sample`: a folder holds samples of one generator with one setting, and a mistake does not cost it."""

import json
import os
import signal
import socket
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_models import make_generator
from machine_faults import limited
from PIL import Image

from vavae.cli import run
from vavae.evaluation.images import npz_images
from vavae.models import SamplingConfig, generator
from vavae.stages import sample as stage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where samples go; the generator is beside it."""
    make_generator().save_pretrained(tmp_path / "generator")
    return tmp_path / "samples"


def sample(folder: Path, *arguments: str) -> int:
    given = ["--generator", str(folder.parent / "generator"), "--output", str(folder), "--device", "cpu"]
    return run(["sample", *given, *arguments])


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that tells why nothing was drawn."""
    before = {path.name: path.read_bytes() for path in folder.glob("[!.]*")}
    capsys.readouterr()
    assert sample(folder, *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in folder.glob("[!.]*")} == before
    return error


def test_images_of_a_former_model_are_not_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample(folder, "--count", "2") == 0
    trained = make_generator()
    with torch.no_grad():
        trained.transformer.x_embedder.proj.bias += 0.1
    trained.save_pretrained(folder.parent / "generator")  # under the same name
    assert "samples of another generator" in refused(folder, capsys, "--count", "3")
    trained.save_pretrained(folder.parent / "again")
    other = folder.with_name("other")
    assert sample(other, "--count", "2") == 0
    # The same weights under another name are the same generator.
    assert sample(other, "--count", "3", "--generator", str(folder.parent / "again")) == 0
    assert len(json.loads((other / "samples.json").read_text())["labels"]) == 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--seed", "1"), "another seed (0, not 1)"),
        (("--steps", "4"), "another steps (3, not 4)"),
        (("--guidance_channels", "2"), "another guidance_channels (None, not 2)"),
        (("--size", "[32, 64]"), "another size"),
        (("--size", "64"), "another size (None, not [64, 64])"),
        (("--label_protocol", "random"), "another label_protocol"),
        (("--precision", "bf16"), "another precision"),
        (("--precision", "tf32"), "another precision (fp32, not tf32)"),
    ],
)
def test_what_differs_is_named(
    options: tuple[str, str], named: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(folder, "--count", "2") == 0
    assert named in refused(folder, capsys, "--count", "3", *options)


@pytest.mark.parametrize(
    "mistake", [("--labels", "11"), ("--size", "[33, 32]"), ("--guidance_start", "2"), ("--steps", "1")]
)
def test_a_mistake_does_not_cost_the_folder(
    mistake: tuple[str, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(folder, capsys, *mistake)
    assert not (folder / "samples.json").exists()
    assert sample(folder, "--labels", "1") == 0


def test_guidance_needs_a_generator_that_knows_no_label(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = make_generator()
    generator.transformer.config = replace(generator.transformer.config, label_dropout=0.0)
    generator.save_pretrained(folder.parent / "generator")
    assert "guidance_scale: this generator was trained without label_dropout" in refused(folder, capsys, "--count", "1")
    assert sample(folder, "--count", "1", "--guidance_scale", "1") == 0


def test_a_record_without_images_counts_for_nothing(folder: Path) -> None:
    assert sample(folder, "--count", "2") == 0
    for image in folder.glob("0*.png"):
        image.unlink()
    assert sample(folder, "--count", "2", "--seed", "1") == 0
    assert json.loads((folder / "samples.json").read_text())["seed"] == 1


@pytest.mark.parametrize(
    ("content", "named"), [('{"generator": "x", "la', "damaged"), ("[]", "damaged"), ('{"seed": 0}', "not a record")]
)
def test_a_record_that_cannot_be_read_is_named(
    content: str, named: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(folder, "--count", "2") == 0
    (folder / "samples.json").write_text(content)
    error = refused(folder, capsys, "--count", "2")
    assert str(folder / "samples.json") in error and named in error


def test_a_record_without_a_fingerprint_vouches_for_no_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample(folder, "--count", "2") == 0
    record = json.loads((folder / "samples.json").read_text())
    del record["fingerprint"]
    (folder / "samples.json").write_text(json.dumps(record))
    assert "samples of another generator" in refused(folder, capsys, "--count", "3")


def test_images_of_somebody_else_are_no_samples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.mkdir()
    Image.new("RGB", (7, 7)).save(folder / "000001.png")
    assert f"{folder} has 000001.png, but no samples.json" in refused(folder, capsys, "--count", "2")
    (folder / "000001.png").unlink()
    assert sample(folder, "--count", "2") == 0
    Image.new("RGB", (7, 7)).save(folder / "000002.png")
    assert f"{folder / '000002.png'} is not listed in samples.json" in refused(folder, capsys, "--count", "3")


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("grid.png", "mine", "has grid.png, but no samples.json"),
        ("cats/1.png", "mine", "has cats, but no samples.json"),
        ("config.json", "{}", "has config.json, but no samples.json"),
        ("samples.npz", "mine", "has samples.npz, but no samples.json"),
        ("samples.json", '{"labels": [1]}', "samples.json is not a record"),
        ("samples.json", "[1, 2]", "samples.json is damaged"),
    ],
)
def test_files_of_somebody_else_are_left_alone(
    name: str, content: str, named: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text(content)
    assert sample(folder, "--count", "2", "--npz") == 2
    error = capsys.readouterr().err.strip()
    assert str(folder) in error and named in error and len(error.splitlines()) == 1
    assert (folder / name).read_text() == content
    assert [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()] == [Path(name)]


def test_what_a_call_left_that_drew_nothing_does_not_cost_the_folder(folder: Path) -> None:
    folder.mkdir()
    for name in (".lock", ".samples.json.0ab3.tmp"):
        (folder / name).write_text("")
    assert sample(folder, "--count", "2") == 0


def test_the_npz_is_what_numpy_writes(folder: Path) -> None:
    assert sample(folder, "--count", "3", "--npz") == 0
    images = np.stack([np.asarray(Image.open(folder / f"{i:06d}.png")) for i in range(3)])
    np.savez(folder.parent / "numpys.npz", arr_0=images)
    written, expected = (zipfile.ZipFile(path) for path in (folder / "samples.npz", folder.parent / "numpys.npz"))
    assert written.namelist() == expected.namelist() == ["arr_0.npy"]
    assert written.read("arr_0.npy") == expected.read("arr_0.npy")
    np.testing.assert_array_equal(np.load(folder / "samples.npz")["arr_0"], images)
    mapped = npz_images(folder / "samples.npz")
    assert mapped is not None and mapped.count == 3


def test_damaged_images_are_drawn_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--count", "4", "--batch_size", "1")
    assert sample(folder, *options) == 0
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    (folder / "000001.png").write_bytes(b"")
    (folder / "000002.png").write_bytes(before["000002.png"][:-100])
    kept = (folder / "000003.png").stat().st_mtime_ns
    assert sample(folder, *options, "--npz") == 0
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == before
    assert (folder / "000003.png").stat().st_mtime_ns == kept
    assert np.load(folder / "samples.npz")["arr_0"].shape == (4, 32, 32, 3)
    assert f"{folder / '000001.png'} is damaged, so it is drawn again" in capsys.readouterr().out


def test_a_call_that_was_killed_leaves_nothing_half_written(folder: Path) -> None:
    """By a signal that Python does not catch, while the npz is being written."""
    dies = "import os, signal; from vavae.stages import sample; "
    dies += "sample._write_npz.__globals__['np'].lib.format.write_array_header_1_0 = "
    dies += "lambda *_: os.kill(os.getpid(), signal.SIGKILL); from vavae.cli import main; main()"
    given = ["--generator", str(folder.parent / "generator"), "--output", str(folder), "--device", "cpu"]
    killed = subprocess.run([sys.executable, "-c", dies, "sample", *given, "--count", "2", "--npz"], check=False)
    assert killed.returncode == -signal.SIGKILL and len(list(folder.glob(".samples.npz.*.tmp"))) == 1
    assert sample(folder, "--count", "2", "--npz") == 0
    assert not list(folder.glob(".*.tmp"))


def test_an_npz_of_images_of_several_sizes_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample(folder, "--count", "3") == 0
    Image.new("RGB", (7, 7)).save(folder / "000002.png")
    assert sample(folder, "--count", "3", "--npz", "--grid_columns", "0") == 2
    assert "000002.png has another size" in capsys.readouterr().err
    assert not (folder / "samples.npz").exists()


def test_no_channels_undo_the_three_of_a_published_checkpoint(folder: Path) -> None:
    """The other option, null, is what an option is that is not given."""
    three = make_generator()
    three.sampling = SamplingConfig(steps=3, guidance_scale=3.0, guidance_start=0.0, guidance_channels=3)
    three.save_pretrained(folder.parent / "generator")
    drawn = {}
    for channels in ("null", "0", "3"):
        output = folder.with_name(channels)
        assert sample(output, "--labels", "1", "--guidance_channels", channels) == 0
        drawn[channels] = (output / "000000.png").read_bytes()
    assert drawn["null"] == drawn["3"] != drawn["0"]


def together(folder: Path, *arguments: str) -> list[tuple[int, str]]:
    """Exit code and errors of two processes, as torchrun starts them."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(found.getsockname()[1]), "WORLD_SIZE": "2"}
    given = ["--generator", str(folder.parent / "generator"), "--output", str(folder), "--device", "cpu", *arguments]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "vavae", "sample", *given],
            env={**os.environ, **shared, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=280)[1] for process in running]
    return [(process.returncode, error) for process, error in zip(running, errors, strict=True)]


def test_two_processes_share_the_images(folder: Path) -> None:
    alone = folder.with_name("alone")
    assert sample(alone, "--count", "5", "--batch_size", "1", "--npz") == 0
    done = together(folder, "--count", "5", "--batch_size", "1", "--npz")
    assert [code for code, _ in done] == [0, 0], done
    names = {path.name for path in alone.glob("[!.]*")}
    assert {path.name for path in folder.glob("[!.]*")} == names
    for name in ("000000.png", "000003.png", "000004.png", "grid.png", "samples.json"):
        assert (folder / name).read_bytes() == (alone / name).read_bytes(), name
    refused = together(folder, "--count", "6", "--seed", "1")
    assert [code for code, _ in refused] == [2, 2], refused
    told = refused[0][1].strip().splitlines()[-1]
    assert told.startswith("vavae: ") and "another seed" in told
    assert "Traceback" not in refused[0][1] + refused[1][1] and "another seed" not in refused[1][1]  # said once


def test_labels_are_names_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["tabby cat", "tiger cat", "2"]
    generator = make_generator()
    named = type(generator)(generator.transformer, generator.tokenizer, class_names=(*names, *"defghij"))
    named.save_pretrained(tmp_path / "generator")
    few = ("--steps", "2", "--grid_columns", "0")
    assert sample(tmp_path / "samples", "--labels", "tiger cat,0,d", *few) == 0
    assert json.loads((tmp_path / "samples/samples.json").read_text())["labels"] == [1, 0, 3]
    capsys.readouterr()
    assert sample(tmp_path / "others", "--labels", "0,tigr cat", *few) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "got 'tigr cat'; near are 'tabby cat', 'tiger cat'" in line
    assert sample(tmp_path / "others", "--labels", "Tiger", *few) == 2
    assert "near are 'tiger cat'" in capsys.readouterr().err
    assert sample(tmp_path / "others", "--labels", "xyz", *few) == 2
    assert "the first are 'tabby cat', 'tiger cat', '2', 'd', 'e'" in capsys.readouterr().err


def test_a_generator_without_names_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no names of classes, got 'cat'" in refused(folder, capsys, "--labels", "cat")


def test_a_name_that_is_another_number_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    stage._note_numbers([10, 1, "10"], ["0", "1", "10"])
    assert capsys.readouterr().out == "labels: 10 is read as a number; the class named '10' has another number\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--guidance_scale", "1e308"), "guidance_scale: 1e+308 is not a number from 0 to 10,000"),
        (
            ("--guidance_scale", "2", "--guidance_channels", "100"),
            "guidance_channels must be at most 4, got 100",
        ),
        (("--steps", "1000000000"), "steps must be at most 100,000 grid points, got 1,000,000,000"),
        (("--count", "1000000000"), "count must be from 1 to 10,000,000 samples, got 1,000,000,000"),
    ],
)
def test_numbers_beyond_what_a_machine_holds_are_refused(
    arguments: tuple[str, ...], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(folder, capsys, *arguments)


def test_samples_that_are_not_finite_are_not_written(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflows(model: object, noise: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        noise[1, 0, 0, 0] = torch.inf
        return noise

    monkeypatch.setattr(generator, "sample", overflows)
    assert sample(folder, "--count", "3", "--guidance_scale", "9000") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("vavae: sample 1 is not finite with guidance_scale 9000 and 3 steps of euler: ")
    assert not list(folder.glob("*.png"))


def test_a_full_disk_is_one_line_that_names_the_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with limited("FSIZE", 2000):
        assert sample(folder, "--count", "3") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == f"vavae: File too large: {folder / '000000.png'}; what was finished is kept"
    assert sample(folder, "--count", "3") == 0
