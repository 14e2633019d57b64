"""Folders of tokenizers and generators, uploads to the hub, and samples of a generator."""

import dataclasses
import errno
import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from published_files import SMALL_F16, autoencoder, golden_dit, same_weights, statistics

from vavae.checkpoints import folder
from vavae.errors import UserError
from vavae.flow import SOLVERS
from vavae.models import Generator, SamplingConfig, Tokenizer
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL, LatentStatistics
from vavae.transformer import LightningDiT

FEW = SamplingConfig(steps=6, guidance_scale=2.0)


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    tokenizer = Tokenizer(autoencoder(SMALL_F16)[0], LatentStatistics.from_dict(statistics(8)), {"teacher": "none"})
    return Generator(golden_dit()[0], tokenizer, sampling=FEW, class_names=list("abcdefghij"), provenance={"seed": 7})


def small_generator() -> Generator:
    torch.manual_seed(0)
    shape = AutoencoderConfig(4, 32, (1, 2), blocks_per_level=1, attention_levels=())
    tokenizer = Tokenizer(AutoencoderKL(shape), LatentStatistics.from_dict(statistics(4)))
    transformer = LightningDiT(latent_size=4, latent_channels=4, width=32, depth=1, heads=2, num_classes=10)
    return Generator(transformer, tokenizer, sampling=SamplingConfig(steps=2))


def test_folder_has_all_parts(generator: Generator, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md", "tokenizer"}
    assert (tmp_path / "tokenizer" / "statistics.safetensors").is_file()
    config = json.loads((tmp_path / "config.json").read_text())
    assert (tmp_path / config["tokenizer"] / "config.json").is_file()
    assert (tmp_path / config["statistics"]).is_file()
    card = (tmp_path / "README.md").read_text()
    assert "library_name: vavae" in card
    assert "statistics of its latents are in `tokenizer/`" in card
    assert "- seed: 7" in card
    back = Generator.from_pretrained(tmp_path)
    assert same_weights(back.transformer, generator.transformer)
    assert back.sampling == FEW
    assert back.class_names == tuple("abcdefghij")
    assert back.provenance == {"seed": 7}
    assert back.tokenizer.provenance == {"teacher": "none"}
    assert back([3, 1]) == generator([3, 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_read_as_float32(generator: Generator, tmp_path: Path, dtype: torch.dtype) -> None:
    generator.save_pretrained(tmp_path / "half", dtype)
    generator.save_pretrained(tmp_path / "whole")
    sizes = [sum(f.stat().st_size for f in (tmp_path / n).rglob("model.safetensors")) for n in ("half", "whole")]
    assert sizes[0] < 0.51 * sizes[1]
    back = Generator.from_pretrained(tmp_path / "half")
    pairs = ((back.transformer, generator.transformer), (back.tokenizer.autoencoder, generator.tokenizer.autoencoder))
    for read, saved in pairs:
        for (name, value), expected in zip(read.state_dict().items(), saved.state_dict().values(), strict=True):
            assert value.dtype == torch.float32 and torch.equal(value, expected.to(dtype).float()), name
    assert torch.equal(back.tokenizer.statistics.mean, generator.tokenizer.statistics.mean)


def test_weights_too_large_for_the_stored_type_are_refused(generator: Generator, tmp_path: Path) -> None:
    tokenizer = Tokenizer(autoencoder(SMALL_F16)[0], generator.tokenizer.statistics)
    with torch.no_grad():
        tokenizer.autoencoder.encoder.conv_in.weight[0, 0, 0, 0] = 1e5
    with pytest.raises(UserError, match=r"encoder\.conv_in\.weight is too large for float16; take bfloat16"):
        Generator(generator.transformer, tokenizer).save_pretrained(tmp_path, torch.float16)
    assert list(tmp_path.iterdir()) == []
    tokenizer.save_pretrained(tmp_path, torch.bfloat16)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == (tmp_path / "README.md").stat().st_mode & 0o777


def test_tokenizer_is_read_from_a_generators_folder(generator: Generator, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert same_weights(tokenizer.autoencoder, generator.tokenizer.autoencoder)
    assert torch.equal(tokenizer.statistics.std, generator.tokenizer.statistics.std)


def test_other_tokenizer_or_statistics_can_be_given(generator: Generator, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path)
    other = LatentStatistics(torch.zeros(8), torch.full((8,), 2.0))
    back = Generator.from_pretrained(tmp_path, statistics=other)
    assert back.tokenizer.statistics is other
    assert same_weights(back.tokenizer.autoencoder, generator.tokenizer.autoencoder)
    assert Generator.from_pretrained(tmp_path, tokenizer=generator.tokenizer).tokenizer is generator.tokenizer


def test_damaged_folder_is_named(generator: Generator, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer" / "statistics.safetensors"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match=r"statistics\.safetensors"):
        Generator.from_pretrained(tmp_path)
    path.write_bytes(content[:-3])
    with pytest.raises(UserError, match=r"statistics\.safetensors: damaged"):
        Generator.from_pretrained(tmp_path)
    path.write_bytes(content)
    config = json.loads((tmp_path / "config.json").read_text())
    wide = {**config, "transformer": {**config["transformer"], "wide": 3}}
    folder.write_json(tmp_path / "config.json", folder.signed(tmp_path, wide))
    with pytest.raises(UserError, match="wide"):
        Generator.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "kind": "other"}))
    with pytest.raises(UserError, match=r"must describe a tokenizer or generator of vavae, .* got other"):
        Generator.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is damaged: not JSON"):
        Generator.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds a tokenizer, not a generator"):
        Generator.from_pretrained(tmp_path / "tokenizer")


def test_class_names_must_be_a_list_of_names(generator: Generator, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    folder.write_json(tmp_path / "config.json", folder.signed(tmp_path, {**config, "class_names": None}))
    assert Generator.from_pretrained(tmp_path).class_names == ()
    for names in (5, "abc", [1, 2]):
        folder.write_json(tmp_path / "config.json", folder.signed(tmp_path, {**config, "class_names": names}))
        with pytest.raises(UserError, match=r"config\.json: class_names must be a list of names, got"):
            Generator.from_pretrained(tmp_path)
    folder.write_json(tmp_path / "config.json", folder.signed(tmp_path, {**config, "class_names": ["a", "b"]}))
    with pytest.raises(UserError, match=r"config\.json: class_names must be 10 names, got 2"):
        Generator.from_pretrained(tmp_path)


def test_published_tokenizer_and_statistics_can_be_given(generator: Generator, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path / "generator")
    torch.save(generator.tokenizer.autoencoder.state_dict(), tmp_path / "vavae.pt")
    torch.save(statistics(8), tmp_path / "latents_stats.pt")
    given = {"tokenizer": tmp_path / "vavae.pt", "statistics": tmp_path / "latents_stats.pt"}
    back = Generator.from_pretrained(tmp_path / "generator", **given)
    assert torch.equal(back.tokenizer.statistics.mean, generator.tokenizer.statistics.mean)
    assert back([3]) == generator([3])


def test_missing_part_is_not_fetched_from_the_hub(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`br/tokenizer` could also be a repository."""

    def fetch(repository: str, **options: Any) -> str:
        raise AssertionError(f"{repository} was fetched")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    generator.save_pretrained("br")
    shutil.rmtree("br/tokenizer")
    for model in (Generator, Tokenizer):
        with pytest.raises(UserError, match=r"^br/tokenizer: no such folder; br is incomplete"):
            model.from_pretrained("br")
    generator.save_diffusers("pipe")
    shutil.rmtree("pipe/vae")
    with pytest.raises(UserError, match=r"^pipe/vae: no such folder"):
        Generator.from_pretrained("pipe")


@pytest.mark.slow
@pytest.mark.parametrize("older", [False, True])
def test_killed_save_is_not_taken_for_a_model(older: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that stops before each file in turn leaves no `config.json`, and every loader needs that file."""
    generator = small_generator()
    torch.manual_seed(1)
    other = Generator(LightningDiT(generator.transformer.config), generator.tokenizer, sampling=FEW)
    writes = {"tensors": folder.write_tensors, "json": folder.write_json}
    left = 0

    def until_killed(name: str) -> Any:
        def write(*arguments: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            writes[name](*arguments)

        return write

    for written in range(5):  # weights, statistics, configuration of the tokenizer; weights, configuration
        here = tmp_path / str(written)
        if older:
            other.save_pretrained(here)
        with monkeypatch.context() as patch:
            left = written
            for name in writes:
                patch.setattr(folder, f"write_{name}", until_killed(name))
            with pytest.raises(KeyboardInterrupt):
                generator.save_pretrained(here)
        assert not (here / "config.json").exists()
        assert (here / "tokenizer/config.json").exists() == (written > 2)
        with pytest.raises(UserError, match=f"^{re.escape(str(here))}: was not completely written; write it again"):
            Generator.from_pretrained(here)
        if written <= 2 and (here / "tokenizer").exists():
            with pytest.raises(UserError, match="was not completely written"):
                Tokenizer.from_pretrained(here / "tokenizer")
        generator.save_pretrained(here)
        assert Generator.from_pretrained(here)([3]) == generator([3])
        assert not list(here.rglob(".*"))


def test_refused_save_leaves_an_older_folder_unchanged(generator: Generator, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    tokenizer = Tokenizer(autoencoder(SMALL_F16)[0], generator.tokenizer.statistics)
    with torch.no_grad():
        tokenizer.autoencoder.encoder.conv_in.weight[0, 0, 0, 0] = 1e5
    with pytest.raises(UserError, match="too large for float16"):
        Generator(generator.transformer, tokenizer).save_pretrained(tmp_path, torch.float16)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_half_written_pipeline_is_refused(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator.save_diffusers(tmp_path)

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_tensors", killed)
        with pytest.raises(KeyboardInterrupt):
            generator.save_diffusers(tmp_path)
    assert not (tmp_path / "model_index.json").exists() and not (tmp_path / "vae/config.json").exists()
    with pytest.raises(UserError, match=r"must have config\.json"):
        Generator.from_pretrained(tmp_path)


def test_unknown_mode_of_encoding_is_named(generator: Generator) -> None:
    images = torch.zeros(1, 3, 32, 32)
    with pytest.raises(UserError, match=r"^mode must be 'mean' or 'sample', got 'mode'"):
        generator.tokenizer.encode(images, mode="mode")  # type: ignore[arg-type]


class FakeHub:
    """A stand-in for huggingface_hub.HfApi that keeps the uploaded files."""

    calls: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    files: ClassVar[dict[str, bytes]] = {}

    def __init__(self, token: str | None = None) -> None:
        self.calls.append(("token", {"token": token}))

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return f"https://hub/{repo_id}"

    def list_repo_files(self, repo_id: str, revision: str | None) -> list[str]:
        return list(self.files)

    def upload_folder(self, *, folder_path: Path, **options: Any) -> None:
        self.calls.append(("upload_folder", options))
        self.files.update(
            {str(p.relative_to(folder_path)): p.read_bytes() for p in Path(folder_path).rglob("*") if p.is_file()}
        )


def test_push_to_hub_uploads_the_folder(generator: Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    address = generator.push_to_hub("me/generator", private=True, token="secret", commit_message="First")
    assert address == "https://hub/me/generator"
    assert FakeHub.calls == [
        ("token", {"token": "secret"}),
        ("create_repo", {"repo_id": "me/generator", "private": True, "exist_ok": True, "repo_type": "model"}),
        ("upload_folder", {"repo_id": "me/generator", "commit_message": "First", "repo_type": "model"}),
    ]
    for name, content in FakeHub.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    # The hub serves the uploaded folder.
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **options: str(tmp_path))
    back = Generator.from_pretrained("me/generator")
    assert same_weights(back.transformer, generator.transformer)
    FakeHub.files.clear()
    generator.tokenizer.push_to_hub("me/tokenizer")
    assert set(FakeHub.files) == {"config.json", "model.safetensors", "statistics.safetensors", "README.md"}


def test_refusal_of_the_hub_is_one_line(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(FakeHub):
        def create_repo(self, repo_id: str, **options: Any) -> str:
            raise OSError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.HfApi", Refusing)
    with pytest.raises(UserError, match=r"me/x: the hub refuses \(no network\)"):
        generator.push_to_hub("me/x")


@pytest.mark.parametrize("solver", SOLVERS)
def test_sample_is_a_function_of_seed_index_and_label(solver: str, generator: Generator) -> None:
    together = generator.latents([4, 1, 7], seed=5, solver=solver)
    alone = generator.latents([7], seed=5, indices=[2], solver=solver)
    # The adaptive solver chooses its steps by the whole batch.
    torch.testing.assert_close(together[2:], alone, rtol=1e-4, atol=1e-4 if solver != "dopri5" else 2e-2)
    again = generator.latents([4, 1, 7], seed=5, solver=solver)
    assert torch.equal(together, again)
    assert not torch.allclose(together, generator.latents([4, 1, 7], seed=6, solver=solver), atol=0.1)


def test_stochastic_solver_adds_noise(generator: Generator) -> None:
    plain = generator.latents([1])
    noisy = generator.latents([1], solver="euler_maruyama")
    assert (plain - noisy).abs().mean() > 0.05


def test_samples_of_other_sizes(generator: Generator, tmp_path: Path) -> None:
    images = generator([1, 2], output_type="pt", size=(32, 96))
    assert images.shape == (2, 3, 32, 96)
    for size in ((64, 64), 64, generator.image_size):
        assert generator([1], size=size) == generator([1])
    # Latents, since the golden decoder amplifies rounding.
    alone, both = (generator.latents(labels, indices=labels, size=(32, 96)) for labels in ([2], [1, 2]))
    torch.testing.assert_close(alone, both[1:], rtol=1e-4, atol=1e-4)
    for size in ((30, 64), (0, 64), 30, -16):
        with pytest.raises(UserError, match=r"size must be .* in multiples of 16"):
            generator([1], size=size)
    with pytest.raises(UserError, match=r"size must be a number or \[height, width\], got \[64\]"):
        generator([1], size=(64,))  # type: ignore[arg-type]
    generator.save_pretrained(tmp_path)
    recomputed, interpolated = (Generator.from_pretrained(tmp_path, positions=p) for p in ("recompute", "interpolate"))
    assert recomputed([1], size=(32, 96)) == generator([1], size=(32, 96))
    assert not torch.allclose(interpolated([1], output_type="pt", size=(32, 96)), images[:1], atol=1e-2)
    assert interpolated([1]) == recomputed([1])


def test_autoguidance_changes_samples(generator: Generator) -> None:
    same = generator.latents([1], weak_model=generator)
    torch.testing.assert_close(same, generator.latents([1], guidance_scale=1.0))
    weak = Generator(LightningDiT(generator.transformer.config), generator.tokenizer)
    guided = generator.latents([1], weak_model=weak)
    assert not torch.allclose(guided, same, atol=0.05)
    # The weak network starts at velocity 0, so the guided velocity is the scale times the strong one.
    torch.testing.assert_close(guided, generator.with_weak_model(weak).latents([1]))
    with pytest.raises(UserError, match="guidance_scale must not be 1 with weak_model, which then has no effect"):
        generator.latents([1], weak_model=weak, guidance_scale=1.0)


INTERVAL = "guidance_start, guidance_stop must be an interval within 0 (noise) to 1 (data), got"


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("steps", 1, "steps must be at least 2 grid points, got 1"),
        ("shift", -0.1, "shift must be a number from 0 to 10,000, got -0.1"),
        ("shift", math.nan, "shift must be a number from 0 to 10,000, got nan"),
        ("guidance_scale", -1.0, "guidance_scale must be a number from 0 to 10,000, got -1.0"),
        ("guidance_scale", math.inf, "guidance_scale must be a number from 0 to 10,000, got inf"),
        ("guidance_start", 7.0, f"{INTERVAL} 7.0 to 1.0"),
        ("guidance_start", -0.1, f"{INTERVAL} -0.1 to 1.0"),
        ("guidance_stop", 0.1, f"{INTERVAL} 0.125 to 0.1"),
        ("guidance_stop", 1.5, f"{INTERVAL} 0.125 to 1.5"),
        ("guidance_channels", -1, "guidance_channels must be a whole number from 0 (all) on, got -1"),
    ],
)
def test_sampling_out_of_range_is_named(name: str, value: float, named: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(named)}"):
        SamplingConfig(**{name: value})


def test_zero_guidance_channels_guide_all(generator: Generator) -> None:
    """An option can so undo the 3 of a published checkpoint; null means an option that is not given."""
    three = dataclasses.replace(FEW, guidance_channels=3)
    every = dataclasses.replace(three, guidance_channels=0)
    assert every == FEW and every.guidance_channels is None
    assert torch.equal(generator.with_sampling(every).latents([1]), generator.latents([1]))
    assert not torch.allclose(generator.with_sampling(three).latents([1]), generator.latents([1]), atol=1e-2)


def test_wrong_labels_are_named(generator: Generator) -> None:
    with pytest.raises(UserError, match=r"labels must be from 0 to 10, got 11 \(10 means no label\)"):
        generator([11])
    with pytest.raises(UserError, match="indices must be one per label, got 1 for 2 labels"):
        generator([1, 2], indices=[0])
    assert generator([10])[0].size == (64, 64)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_draws_the_same_images(generator: Generator, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path)
    there = Generator.from_pretrained(tmp_path, "cuda")
    assert there.tokenizer.device.type == "cuda"
    for solver in ("euler", "euler_maruyama"):
        latents = there.latents([1, 2], seed=3, solver=solver)
        torch.testing.assert_close(latents.cpu(), generator.latents([1, 2], 3, solver=solver), rtol=1e-3, atol=1e-3)


def test_files_without_permission_are_named(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator.save_pretrained(tmp_path)
    plain_open = io.open
    for name in ("model.safetensors", "config.json"):

        def refuse(file: Any, *arguments: Any, forbidden: str = name, **options: Any) -> Any:
            if str(file).endswith(forbidden):
                raise PermissionError(errno.EACCES, "Permission denied", str(file))
            return plain_open(file, *arguments, **options)

        monkeypatch.setattr(io, "open", refuse)
        with pytest.raises(UserError, match=rf"{re.escape(name)}: cannot be read \(Permission denied\)$"):
            Generator.from_pretrained(tmp_path)


def test_latents_are_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "latents_rank00_shard000.safetensors").write_bytes(b"")
    for model, name in ((Generator, "generator"), (Tokenizer, "tokenizer")):
        with pytest.raises(UserError, match=f"^{tmp_path}: holds latents, not a {name}$"):
            model.from_pretrained(tmp_path)
