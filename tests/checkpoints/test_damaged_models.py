"""Model folders that are damaged, incomplete, or state sizes that their weights do not have."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import golden_dit, statistics
from safetensors.torch import save_file

from vavae import AutoencoderKL, Generator, LightningDiT, SamplingConfig, Tokenizer, UserError
from vavae.checkpoints import folder as files
from vavae.checkpoints.locations import resolve
from vavae.cli import run
from vavae.tokenizer import AutoencoderConfig, LatentStatistics

FEW = SamplingConfig(steps=3, guidance_scale=1.5)
# Keys with values that would take all time or memory if a network were built.
HUGE = [
    ("transformer", "depth", 10**5),
    ("transformer", "depth", 900),
    ("transformer", "width", 10**9),
    ("transformer", "width", 65_536),
    ("transformer", "latent_size", 10**5),
    ("transformer", "latent_size", 900),
    ("transformer", "num_classes", 10**9),
    ("transformer", "num_classes", 10**6),
    ("transformer", "heads", 10**4000),
    ("transformer", "latent_channels", 10**9),
    ("autoencoder", "base_channels", 10**9),
    ("autoencoder", "base_channels", 65_536),
    ("autoencoder", "blocks_per_level", 10**9),
    ("autoencoder", "blocks_per_level", 999),
    ("autoencoder", "latent_channels", 10**9),
    ("autoencoder", "channel_multipliers", [1] * 10_000),
    ("autoencoder", "channel_multipliers", [10**9]),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    shape = AutoencoderConfig(4, 32, (1, 2), blocks_per_level=1, attention_levels=())
    tokenizer = Tokenizer(AutoencoderKL(shape), LatentStatistics.from_dict(statistics(4)))
    transformer = LightningDiT(latent_size=4, latent_channels=4, width=32, depth=1, heads=2, num_classes=10)
    for weight in transformer.parameters():  # in a new network most are zero, and others would have no effect
        torch.nn.init.normal_(weight, std=0.1)
    folder = tmp_path_factory.mktemp("model") / "generator"
    Generator(transformer, tokenizer, sampling=FEW, class_names=list("abcdefghij")).save_pretrained(folder)
    return folder


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "generator"))


def flips(content: bytes, count: int) -> Iterator[tuple[int, bytes]]:
    """Yield the content with one flipped bit, at `count` places from its first byte to its last."""
    for number in range(count):
        at = number * (len(content) - 1) // (count - 1)
        changed = bytearray(content)
        changed[at] ^= 1 << number % 8
        yield at, bytes(changed)


@pytest.mark.slow
def test_flipped_bit_is_refused_or_harmless(model: Path) -> None:
    expected = Generator.from_pretrained(model)([3])
    refused = 0
    for path in sorted(path for path in model.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for at, changed in flips(content, 2 if path.suffix == ".md" else 8):
            path.write_bytes(changed)
            try:
                images = Generator.from_pretrained(model)([3])
            except UserError as error:
                assert len(str(error).splitlines()) == 1
                refused += 1
            else:
                assert images == expected, f"byte {at} of {path.name}"
                assert path.suffix in (".md", ".json"), f"byte {at} of {path.name}"
        path.write_bytes(content)
    assert refused > 3 * 8  # all in the three files of tensors, and most in the configurations
    assert Generator.from_pretrained(model)([3]) == expected


def test_changed_configuration_names_the_remedy(model: Path) -> None:
    path = model / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"steps": 3', '"steps": 9'))
    with pytest.raises(
        UserError, match=r"config\.json: changed since it was written\. If you changed it, set config"
    ) as caught:
        Generator.from_pretrained(model)
    digest = str(caught.value).partition(" to ")[2].partition(";")[0]
    config = json.loads(path.read_text())
    config["sha256"]["config.json"] = digest
    path.write_text(json.dumps(config))  # spaces and lines do not count
    assert Generator.from_pretrained(model).sampling.steps == 9
    for hashes in ({}, {"config.json": digest}, None, "abc"):
        path.write_text(json.dumps({**config, "sha256": hashes}))
        with pytest.raises(UserError, match=r"sha256 must list model\.safetensors, config\.json; write"):
            Generator.from_pretrained(model)


@pytest.mark.parametrize(
    "lost", ["config.json", "tokenizer/config.json", "tokenizer", "tokenizer/statistics.safetensors"]
)
def test_folder_without_a_part_is_incomplete(lost: str, model: Path) -> None:
    path = model / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    tokenizer = Tokenizer.from_pretrained("demo")
    with pytest.raises(UserError, match=r"incomplete|no such file"):
        Generator.from_pretrained(model)
    with pytest.raises(UserError, match=r"incomplete|no such file"):
        Generator.from_pretrained(model, tokenizer=tokenizer)  # with other statistics than the training
    assert run(["convert", str(model), str(model.parent / "out")]) == 2
    assert not (model.parent / "out").exists()


def test_weights_without_their_folder_are_refused(model: Path, tmp_path: Path) -> None:
    for source in (model, model / "tokenizer", resolve("demo")):
        shutil.copy(source / "model.safetensors", tmp_path / "lone.safetensors")
        with pytest.raises(UserError, match=r"lone\.safetensors: the weights of a vavae .* without its config"):
            Tokenizer.from_pretrained(tmp_path / "lone.safetensors", statistics="identity")


@pytest.mark.parametrize(("part", "key", "value"), HUGE)
def test_wrong_sizes_are_refused_before_building(part: str, key: str, value: Any, model: Path) -> None:
    folder = model if part == "transformer" else model / "tokenizer"
    config = json.loads((folder / "config.json").read_text())
    config[part][key] = value
    files.write_json(folder / "config.json", files.signed(folder, config))
    with pytest.raises(UserError, match=key) as caught:
        Generator.from_pretrained(model)
    assert len(str(caught.value)) < 400 + len(str(folder))


def test_a_tokenizer_of_another_range_is_refused(model: Path) -> None:
    folder = model / "tokenizer"
    config = json.loads((folder / "config.json").read_text())
    files.write_json(folder / "config.json", files.signed(folder, {**config, "image_range": [0, 255]}))
    with pytest.raises(UserError, match=r"config\.json: image_range must be \[-1, 1\], got \[0, 255\]"):
        Generator.from_pretrained(model)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("path", "spiral", "path must be one of linear, cosine, vp, got spiral"),
        ("path", [1], "path must be one of"),
        ("prediction", "noise2", "prediction must be one of"),
        ("sampling", [], r"sampling must be a set of keys, got \[\]"),
        ("sampling", {"steps": 10**9}, "sampling: steps must be at most"),
        ("class_names", "abc", "class_names must be a list of names, got abc"),
        ("path", None, "path must be one of"),
    ],
)
def test_wrong_values_in_a_generators_config(key: str, value: Any, message: str, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    files.write_json(model / "config.json", files.signed(model, {**config, key: value}))
    with pytest.raises(UserError, match=rf"config\.json: {message}"):
        Generator.from_pretrained(model)
    del config[key]
    files.write_json(model / "config.json", files.signed(model, config))
    with pytest.raises(UserError, match=rf"config\.json: the key '{key}' is missing"):
        Generator.from_pretrained(model)


@pytest.mark.slow
def test_published_file_with_empty_blocks_is_refused(tmp_path: Path) -> None:
    tensors = golden_dit()[0].state_dict()
    tensors |= {f"blocks.{number}.norm1.weight": torch.ones(1) for number in range(2, 5_000)}
    save_file(tensors, tmp_path / "dit.safetensors")
    with pytest.raises(UserError, match=r"dit\.safetensors: depth must be from 1 to 1,000, got 5000"):
        Generator.from_pretrained(tmp_path / "dit.safetensors", tokenizer="demo")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 10**5, "nested too deeply"),
        ('{"a":' * 10**5, "nested too deeply"),
        ('{"kind": ' + "9" * 5_000 + "}", "4300 digits"),
        ('{"kind": "generator", "kind": "tokenizer"}', "the key 'kind' occurs twice"),
        ("[1]", "not a JSON object"),
        ("\xff", "not JSON"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "model_index.json"])
def test_damaged_json_is_reported_in_one_line(text: str, reason: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    for read in (Tokenizer.from_pretrained, Generator.from_pretrained):
        with pytest.raises(UserError, match=reason) as caught:
            read(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path / name} is damaged: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [10**400, "x", [1], None, float("nan")])
def test_unusable_scaling_factor_is_named(value: Any, model: Path, tmp_path: Path) -> None:
    Tokenizer.from_pretrained(model).save_diffusers(tmp_path / "vae")
    config = json.loads((tmp_path / "vae/config.json").read_text())
    for key in ("latents_mean", "latents_std"):
        config.pop(key)
    (tmp_path / "vae/config.json").write_text(json.dumps({**config, "scaling_factor": value}))
    with pytest.raises(UserError, match="scaling_factor"):
        Tokenizer.from_pretrained(tmp_path / "vae")


def test_what_a_killed_process_left_is_removed(model: Path) -> None:
    drafts = [model / name / ".model.safetensors.0123456789abcdef.tmp" for name in ("", "tokenizer")]
    for draft in drafts:
        draft.write_bytes(b"half")
    Generator.from_pretrained(model).save_pretrained(model)
    assert not any(draft.exists() for draft in drafts)
    Generator.from_pretrained(model)
