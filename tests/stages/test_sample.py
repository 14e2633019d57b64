"""`vavae sample`: files, resuming, and refusal of folders with other samples or foreign files."""

import json
import os
import shutil
import signal
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from children import CONTEXT
from evaluate_models import make_generator
from machine_faults import limited
from PIL import Image

from vavae.cli import run
from vavae.evaluation.images import npz_images
from vavae.models import SamplingConfig, generator
from vavae.models.sampling import draw
from vavae.stages import sample as stage


@pytest.fixture(scope="module")
def two_samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a generator and two of its samples, to be copied."""
    made = tmp_path_factory.mktemp("made")
    make_generator().save_pretrained(made / "generator")
    assert sample(made / "samples", "--count", "2") == 0
    return made


@pytest.fixture
def folder(two_samples: Path, tmp_path: Path) -> Path:
    """Return the folder for samples, which does not exist yet; the generator is in the same folder."""
    shutil.copytree(two_samples / "generator", tmp_path / "generator")
    return tmp_path / "samples"


@pytest.fixture
def drawn(two_samples: Path, folder: Path) -> Path:
    """Return the folder for samples with two of them."""
    shutil.copytree(two_samples / "samples", folder)
    return folder


def sample(folder: Path, *arguments: str) -> int:
    given = ["--generator", str(folder.parent / "generator"), "--output", str(folder), "--device", "cpu"]
    return run(["sample", *given, *arguments])


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Check that nothing is drawn, and return the message."""
    before = {path.name: path.read_bytes() for path in folder.glob("[!.]*")}
    capsys.readouterr()
    assert sample(folder, *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in folder.glob("[!.]*")} == before
    return error


@pytest.mark.slow
def test_images_of_other_weights_are_refused(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = drawn
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
        (("--end", "0.9"), "another end (1.0, not 0.9)"),
        (("--guidance_kind", "zero_star"), "another guidance_kind (cfg, not zero_star)"),
        (("--precision", "bf16"), "another precision"),
        (("--precision", "tf32"), "another precision (fp32, not tf32)"),
    ],
)
def test_changed_settings_are_named(
    options: tuple[str, str], named: str, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in refused(drawn, capsys, "--count", "3", *options)


def pixels_in(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.glob("[0-9]*.png"))])


def test_weak_model_guides_and_is_recorded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weak = folder.parent / "weak"
    make_generator(2).save_pretrained(weak)
    options = ("--count", "2", "--weak_model", str(weak), "--guidance_scale", "2")
    assert sample(folder, *options) == 0
    settings = make_generator().sampling.changed(guidance_scale=2.0)
    expected = draw(make_generator().with_weak_model(make_generator(2)), [0, 1], [0, 1], 0, settings)
    np.testing.assert_array_equal(pixels_in(folder), expected)
    record = json.loads((folder / "samples.json").read_text())
    assert record["weak_model"] == str(weak) and record["weak_model_fingerprint"] == make_generator(2).fingerprint()
    make_generator(3).save_pretrained(weak)
    assert "another weak_model_fingerprint" in refused(folder, capsys, *options)
    assert "guidance_scale must not be 1 with weak_model" in refused(folder, capsys, *options[:-1], "1")


def test_options_reach_the_sampler(folder: Path) -> None:
    options = {"guidance_kind": "zero_star", "zero_init_steps": 2, "end": 0.9, "steps": 6, "shift": "dimension"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert sample(folder, "--labels", "3", "--size", "128", *words) == 0
    settings = make_generator().sampling.changed(**options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(pixels_in(folder), draw(make_generator(), [3], [0], 0, settings, size=128))
    assert json.loads((folder / "samples.json").read_text())["sampling"]["shift"] == 1.0  # of 4x32x32 latents


def test_folder_is_free_after_a_mistake(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for mistake in (("--labels", "11"), ("--size", "[33, 32]"), ("--guidance_start", "2"), ("--steps", "1")):
        refused(folder, capsys, *mistake)
        assert not (folder / "samples.json").exists(), mistake
    assert sample(folder, "--labels", "1") == 0


def test_guidance_needs_label_dropout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = make_generator()
    generator.transformer.config = replace(generator.transformer.config, label_dropout=0.0)
    generator.save_pretrained(folder.parent / "generator")
    assert "guidance_scale must be 1 for a transformer trained without" in refused(folder, capsys, "--count", "1")
    assert sample(folder, "--count", "1", "--guidance_scale", "1") == 0


def test_record_without_images_is_replaced(drawn: Path) -> None:
    for image in drawn.glob("0*.png"):
        image.unlink()
    assert sample(drawn, "--count", "2", "--seed", "1") == 0
    assert json.loads((drawn / "samples.json").read_text())["seed"] == 1


@pytest.mark.parametrize(
    ("content", "named"), [('{"generator": "x", "la', "damaged"), ("[]", "damaged"), ('{"seed": 0}', "not a record")]
)
def test_unreadable_record_is_named(content: str, named: str, drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (drawn / "samples.json").write_text(content)
    error = refused(drawn, capsys, "--count", "2")
    assert str(drawn / "samples.json") in error and named in error


def test_record_without_fingerprint_is_refused(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((drawn / "samples.json").read_text())
    del record["fingerprint"]
    (drawn / "samples.json").write_text(json.dumps(record))
    assert "samples of another generator" in refused(drawn, capsys, "--count", "3")


def test_foreign_images_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
def test_foreign_files_are_kept(
    name: str, content: str, named: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text(content)
    assert sample(folder, "--count", "2", "--npz") == 2
    error = capsys.readouterr().err.strip()
    assert str(folder) in error and named in error and len(error.splitlines()) == 1
    assert (folder / name).read_text() == content
    assert [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()] == [Path(name)]


def test_folder_is_free_after_a_call_without_images(folder: Path) -> None:
    folder.mkdir()
    for name in (".lock", ".samples.json.0ab3.tmp"):
        (folder / name).write_text("")
    assert sample(folder, "--count", "2") == 0


def test_npz_equals_that_of_numpy(folder: Path) -> None:
    assert sample(folder, "--count", "3", "--npz") == 0
    images = np.stack([np.asarray(Image.open(folder / f"{i:06d}.png")) for i in range(3)])
    np.savez(folder.parent / "numpys.npz", arr_0=images)
    written, expected = (zipfile.ZipFile(path) for path in (folder / "samples.npz", folder.parent / "numpys.npz"))
    assert written.namelist() == expected.namelist() == ["arr_0.npy"]
    assert written.read("arr_0.npy") == expected.read("arr_0.npy")
    np.testing.assert_array_equal(np.load(folder / "samples.npz")["arr_0"], images)
    mapped = npz_images(folder / "samples.npz")
    assert mapped is not None and mapped.count == 3
    assert sample(folder, "--count", "4") == 0 and not (folder / "samples.npz").exists()  # it would have 3 of 4


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


def die_while_writing(folder: str) -> None:
    """Draw two images, and kill this process while the npz is being written."""
    stage.np.lib.format.write_array_header_1_0 = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    sample(Path(folder), "--count", "2", "--npz")


@pytest.mark.slow
def test_killed_call_leaves_no_partial_files(folder: Path) -> None:
    child = CONTEXT.Process(target=die_while_writing, args=(str(folder),))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and len(list(folder.glob(".samples.npz.*.tmp"))) == 1
    assert sample(folder, "--count", "2", "--npz") == 0
    assert not list(folder.glob(".*.tmp"))


def test_npz_of_several_sizes_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample(folder, "--count", "3") == 0
    Image.new("RGB", (7, 7)).save(folder / "000002.png")
    assert sample(folder, "--count", "3", "--npz", "--grid_columns", "0") == 2
    assert "000002.png has another size" in capsys.readouterr().err
    assert not (folder / "samples.npz").exists()


@pytest.mark.slow
def test_zero_guidance_channels_guide_all(folder: Path) -> None:
    """null is the generator's own value, as if the option were not given."""
    three = make_generator()
    three.sampling = SamplingConfig(steps=3, guidance_scale=3.0, guidance_start=0.0, guidance_channels=3)
    three.save_pretrained(folder.parent / "generator")
    drawn = {}
    for channels in ("null", "0", "3"):
        output = folder.with_name(channels)
        assert sample(output, "--labels", "1", "--guidance_channels", channels) == 0
        drawn[channels] = (output / "000000.png").read_bytes()
    assert drawn["null"] == drawn["3"] != drawn["0"]


@pytest.mark.slow
def test_two_processes_share_the_images(folder: Path, launch: Callable[..., None]) -> None:
    alone = folder.with_name("alone")
    assert sample(alone, "--count", "5", "--batch_size", "1", "--npz") == 0
    launch(2, "samples", folder.parent / "generator", folder)
    names = {path.name for path in alone.glob("[!.]*")}
    assert {path.name for path in folder.glob("[!.]*")} == names
    for name in ("000000.png", "000003.png", "000004.png", "grid.png", "samples.json"):
        assert (folder / name).read_bytes() == (alone / name).read_bytes(), name


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


def test_names_need_a_generator_with_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "since this generator has no class names, got 'cat'" in refused(folder, capsys, "--labels", "cat")


def test_note_on_names_that_are_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    stage._note_numbers([10, 1, "10"], ["0", "1", "10"])
    assert capsys.readouterr().out == "labels: 10 is read as a number; the class named '10' has another number\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--guidance_scale", "1e308"), "guidance_scale must be a number from 0 to 10,000, got 1e+308"),
        (
            ("--guidance_scale", "2", "--guidance_channels", "100"),
            "guidance_channels must be at most 4, got 100",
        ),
        (("--steps", "1000000000"), "steps must be at most 100,000 grid points, got 1,000,000,000"),
        (("--count", "1000000000"), "count must be from 1 to 10,000,000 samples, got 1,000,000,000"),
    ],
)
def test_too_large_numbers_are_refused(
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


def test_full_disk_names_the_image(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with limited("FSIZE", 2000):
        assert sample(folder, "--count", "3") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == f"vavae: File too large: {folder / '000000.png'}; finished work is kept"
    assert sample(folder, "--count", "3") == 0


def test_blocks_are_compiled_on_request(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: list[dict[str, object]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block, **given: options.append(given))
    assert sample(folder, "--count", "2") == 0 and options == []
    assert sample(folder, "--count", "4", "--compile") == 0
    assert options == [{"dynamic": True}]
    assert "compile: transformer, 2 images: " in capsys.readouterr().out
    assert "compile must be" in refused(folder, capsys, "--compile", "maybe")
