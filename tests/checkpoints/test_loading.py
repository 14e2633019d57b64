"""Published files load unchanged, strictly, with a report, and give the published numbers."""

import functools
import json
import re
from pathlib import Path

import pytest
import torch
from published_files import (
    GOLDEN,
    MAR_VAE,
    SD_VAE,
    SMALL,
    VA_VAE,
    autoencoder,
    golden_dit,
    lightning_checkpoint,
    same_weights,
    statistics,
    training_checkpoint,
    weights,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

import vavae
from vavae.checkpoints.folder import load_strictly
from vavae.checkpoints.loading import load_autoencoder, load_transformer
from vavae.checkpoints.shapes import infer_autoencoder, infer_transformer, size_name
from vavae.checkpoints.statistics import scaling_statistics
from vavae.errors import UserError
from vavae.models import Generator, SamplingConfig, Tokenizer
from vavae.tokenizer import LatentStatistics
from vavae.transformer.positions import embedding_of_grid


@pytest.fixture
def stats(tmp_path: Path) -> Path:
    path = tmp_path / "latents_stats.pt"
    torch.save(statistics(8), path)
    return path


@pytest.mark.parametrize("form", ["raw", "safetensors", "lightning", "compiled", "half"])
def test_forms_of_an_autoencoder_give_the_same_weights(form: str, tmp_path: Path, stats: Path) -> None:
    model, projection = autoencoder(SMALL)
    path = tmp_path / ("vavae.safetensors" if form == "safetensors" else "vavae.ckpt")
    if form == "safetensors":
        save_file(model.state_dict(), path)
    elif form == "lightning":
        torch.save(lightning_checkpoint(model, projection), path)
    elif form == "compiled":
        torch.save({"state_dict": {f"_orig_mod.module.{k}": v for k, v in model.state_dict().items()}}, path)
    elif form == "half":
        model.bfloat16()
        torch.save(model.state_dict(), path)
        model.float()
    else:
        torch.save(model.state_dict(), path)
    tokenizer = vavae.Tokenizer.from_pretrained(path, statistics=stats)
    assert tokenizer.autoencoder.config == SMALL
    assert same_weights(tokenizer.autoencoder, model)
    assert torch.equal(tokenizer.statistics.mean, statistics(8)["mean"].flatten())
    assert torch.equal(tokenizer.statistics.std, statistics(8)["std"].flatten())
    assert tokenizer.report is not None
    assert tokenizer.report.tensors == len(model.state_dict())
    assert tokenizer.report.parameters == sum(v.numel() for v in model.state_dict().values())


def test_report_lists_ignored_parts_with_reasons(tmp_path: Path, stats: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(lightning_checkpoint(*autoencoder(SMALL)), tmp_path / "last.ckpt")
    report = Tokenizer.from_pretrained(tmp_path / "last.ckpt", statistics=stats).report
    assert report is not None
    ignored = {part.what: part for part in report.ignored}
    assert ignored["loss.*"].count == 3
    assert "discriminator" in ignored["loss.*"].why
    assert "teacher" in ignored["foundation_model.*"].why
    assert "projection" in ignored["linear_proj.*"].why
    assert "optimizer" in ignored["optimizer_states"].why
    assert {"epoch", "loops", "callbacks", "lr_schedulers"} <= ignored.keys()
    assert report.weights == "state_dict"
    assert "left out loss.* (3): discriminator" in str(report)
    assert "left out epoch, global_step, pytorch-lightning_version: not weights" in str(report)
    assert "left out loss.*" in caplog.text
    assert max(len(line) for line in str(report).splitlines()[1:]) <= 80


def test_published_autoencoder_gives_golden_numbers(tmp_path: Path, stats: Path) -> None:
    golden = load_file(GOLDEN / "vae_f16d8.safetensors")
    torch.save(lightning_checkpoint(*autoencoder()), tmp_path / "vavae.ckpt")
    # In float64: these weights amplify rounding.
    model = load_autoencoder(tmp_path / "vavae.ckpt").model.double()
    posterior = model.encode(golden["image"].double())
    latents = posterior.sample(noise=golden["noise"].double())
    torch.testing.assert_close(latents.float(), golden["latent"], rtol=1e-5, atol=1e-5)
    images = model.decode(golden["latent"].double()).float()
    assert (images - golden["reconstruction"]).norm() < 1e-4 * golden["reconstruction"].norm()


@pytest.mark.parametrize("config", [MAR_VAE, SD_VAE, VA_VAE], ids=["mar", "sd", "va"])
def test_architecture_is_read_from_the_shapes(config: vavae.tokenizer.AutoencoderConfig, tmp_path: Path) -> None:
    model, _ = autoencoder(config)
    torch.save({"model": model.state_dict()}, tmp_path / "kl16.ckpt")
    loaded = load_autoencoder(tmp_path / "kl16.ckpt")
    assert loaded.model.config == config
    assert same_weights(loaded.model, model)
    assert ("no attention on the decoder's way up" in loaded.report.what) == (config is MAR_VAE)


@pytest.mark.parametrize("channels", [16, 32, 64])
def test_published_autoencoders_are_recognized(channels: int) -> None:
    shapes = json.loads((GOLDEN / "state_dicts.json").read_text())[f"vavae_f16d{channels}"]["state_dict"]
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items() if "linear" not in name}
    assert infer_autoencoder(tensors, "golden") == vavae.tokenizer.AutoencoderConfig(latent_channels=channels)


@pytest.mark.parametrize("name", ["B/1", "B/2", "L/2", "XL/1", "XL/2", "1p0B/1", "1p0B/2", "1p6B/1", "1p6B/2"])
def test_published_transformers_are_recognized(name: str) -> None:
    golden = json.loads((GOLDEN / "state_dicts.json").read_text())[f"LightningDiT-{name}"]
    shapes, depth = golden["state_dict"], golden["depth"]
    block = {key: shape for key, shape in shapes.items() if key.startswith("blocks.0.")}
    for i in range(depth):
        shapes |= {key.replace("blocks.0.", f"blocks.{i}."): shape for key, shape in block.items()}
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    _, tokens, width = shapes["pos_embed"]
    side = int(tokens**0.5)
    tensors["pos_embed"] = embedding_of_grid(width, (side, side), (side, side), "recompute", torch.device("cpu"))
    config = infer_transformer(tensors, "golden")
    assert config == vavae.transformer.LightningDiTConfig.from_size(name)
    assert size_name(config) == name


@pytest.mark.parametrize("name", ["dit_paper", "dit_qknorm_noshift", "dit_original"])
def test_published_transformer_gives_golden_numbers(name: str, tmp_path: Path) -> None:
    model, golden = golden_dit(name)
    torch.save(training_checkpoint(model), tmp_path / "0080000.pt")
    # Without a rotary embedding the number of heads does not show.
    loaded = load_transformer(tmp_path / "0080000.pt", heads=4 if name == "dit_original" else None)
    assert loaded.model.config == model.config
    assert same_weights(loaded.model, model)
    with torch.no_grad():
        velocity = loaded.model(golden["x"], golden["t"], golden["y"])
    torch.testing.assert_close(velocity, golden["velocity"], rtol=1e-5, atol=1e-5)
    assert torch.equal(loaded.model.state_dict()["pos_embed"], model.pos_embed)
    assert loaded.report.weights == "ema"
    assert {part.what for part in loaded.report.ignored} == {"model", "opt", "config"}


def test_published_generator_gives_golden_samples(tmp_path: Path, stats: Path) -> None:
    model, _ = golden_dit()
    golden = load_file(GOLDEN / "dit_paper_samples.safetensors")
    torch.save(training_checkpoint(model), tmp_path / "lightningdit.pt")
    torch.save(weights(SMALL), tmp_path / "vavae.pt")
    generator = vavae.Generator.from_pretrained(
        tmp_path / "lightningdit.pt", tokenizer=tmp_path / "vavae.pt", statistics=stats
    )
    settings = generator.sampling
    assert (settings.steps, settings.guidance_scale, settings.guidance_channels) == (20, 3.0, 3)
    generator.noise = lambda indices, seed=0, size=None: golden["noise"]  # type: ignore[method-assign]
    torch.testing.assert_close(generator.latents([0, 2]), golden["guided"], rtol=1e-4, atol=1e-4)


PLAIN = {"mean": torch.zeros(8), "std": torch.ones(8)}


@pytest.mark.parametrize(
    ("data", "mean", "std"),
    [
        ({"latent_norm": True, "latent_multiplier": 1.0}, 0.0, 1.0),
        ({"latent_norm": True, "latent_multiplier": 0.5}, 0.0, 2.0),
        ({"latent_norm": True}, 0.0, 1 / 0.18215),
        ({"latent_norm": False, "latent_multiplier": 0.5}, 0.0, 2.0),
        ({"num_classes": 10}, 0.0, 1 / 0.18215),
        (None, 3.0, 7.0),
    ],
)
def test_latents_are_scaled_by_the_configuration(
    data: dict[str, object] | None, mean: float, std: float, tmp_path: Path
) -> None:
    """The published sampler decodes z · std / latent_multiplier + mean, with the statistics of the training latents."""
    content = training_checkpoint(golden_dit()[0])
    content["config"] = {name: part for name, part in content["config"].items() if name != "data"}
    own = LatentStatistics(torch.full((8,), 3.0), torch.full((8,), 7.0))
    if data is not None:
        content["config"]["data"] = data
        torch.save(PLAIN, tmp_path / "latents_stats.pt")
    torch.save(content, tmp_path / "lightningdit.pt")
    tokenizer = Tokenizer(autoencoder(SMALL)[0], own)
    generator = Generator.from_pretrained(tmp_path, tokenizer=tokenizer)
    found = generator.tokenizer.statistics
    torch.testing.assert_close((found.mean, found.std), (torch.full((8,), mean), torch.full((8,), std)))
    assert ("latent_multiplier" in str(generator.report)) == (std not in (1.0, 7.0))
    # Given statistics take precedence over the ones in the folder.
    given = Generator.from_pretrained(tmp_path, tokenizer=tokenizer, statistics=own).tokenizer.statistics
    factor = 1.0 if data is None or not data.get("latent_norm") else float(str(data.get("latent_multiplier", 0.18215)))
    torch.testing.assert_close((given.mean, given.std), (own.mean, own.std / factor))


def test_generator_keeps_its_statistics_with_another_tokenizer(tmp_path: Path) -> None:
    """The folder has the statistics of the training; another tokenizer has the ones of other images."""
    trained = LatentStatistics(torch.full((8,), 3.0), torch.full((8,), 7.0))
    other = Tokenizer(autoencoder(SMALL)[0], LatentStatistics(torch.zeros(8), torch.ones(8)))
    Generator(golden_dit()[0], other, trained).save_pretrained(tmp_path)
    read = Generator.from_pretrained(tmp_path, tokenizer=other).tokenizer.statistics
    assert torch.equal(read.mean, trained.mean) and torch.equal(read.std, trained.std)
    given = Generator.from_pretrained(tmp_path, tokenizer=other, statistics=other.statistics).tokenizer.statistics
    assert torch.equal(given.std, other.statistics.std)


def test_either_set_of_weights_can_be_chosen(tmp_path: Path) -> None:
    model, _ = golden_dit()
    path = tmp_path / "a.pt"
    torch.save(training_checkpoint(model), path)
    plain = load_transformer(path, weights="model").model.state_dict()
    assert all(torch.equal(value, model.state_dict()[name] + 1) for name, value in plain.items())
    torch.save({"ema": dict(model.state_dict())}, path)
    assert same_weights(load_transformer(path).model, model)
    with pytest.raises(UserError, match=r"weights must be one of its sets \(ema\), got model"):
        load_transformer(path, weights="model")
    torch.save(dict(model.state_dict()), path)
    with pytest.raises(UserError, match=r"averaged weights .* are missing"):
        load_transformer(path, weights="ema")


def test_rectangular_grids_are_recognized(tmp_path: Path) -> None:
    model = vavae.LightningDiT(latent_size=(4, 12), patch_size=2, latent_channels=4, width=48, depth=1, heads=2)
    torch.save(model.state_dict(), tmp_path / "wide.pt")
    assert load_transformer(tmp_path / "wide.pt").model.config.latent_hw == (4, 12)


def _without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(name)}


@pytest.mark.parametrize(
    "name", ["encoder.conv_in.weight", "encoder.down.1.", "decoder.up.4.attn.1.k.weight", "quant_conv.weight"]
)
def test_missing_keys_of_an_autoencoder_are_named(name: str, tmp_path: Path) -> None:
    torch.save({"state_dict": _without(weights(), name)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt: missing .*" + name.rstrip(".").replace(".", r"\.")):
        load_autoencoder(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "name", ["x_embedder.proj.bias", "blocks.0.", "blocks.1.mlp.w3.weight", "pos_embed", "feat_rope.freqs_sin"]
)
def test_missing_keys_of_a_transformer_are_named(name: str, tmp_path: Path) -> None:
    torch.save(_without(golden_dit()[0].state_dict(), name), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt: missing .*" + name.rstrip(".").replace(".", r"\.")):
        load_transformer(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["dit_paper", "dit_qknorm_noshift", "dit_original"])
def test_any_missing_key_of_a_transformer_is_named(name: str) -> None:
    """Also the keys that show the architecture."""
    state = golden_dit(name)[0].state_dict()
    build = functools.cache(vavae.LightningDiT)
    for key in state:
        rest = {other: value for other, value in state.items() if other != key}
        with pytest.raises(UserError, match=r"missing (.*, )?" + re.escape(key)), torch.device("meta"):
            load_strictly(build(infer_transformer(rest, "file", heads=4)), rest, "file")


SHOWN = [  # keys by which an architecture is recognized, and some that have no part in it
    "encoder.conv_in.weight",
    "encoder.mid.attn_1.q.bias",
    "encoder.down.3.block.0.conv1.weight",
    "decoder.conv_in.weight",
    "decoder.up.2.block.1.norm2.weight",
    "decoder.up.4.attn.1.k.weight",
    "quant_conv.weight",
    "post_quant_conv.bias",
]


@pytest.mark.parametrize("config", [MAR_VAE, SD_VAE, VA_VAE], ids=["mar", "sd", "va"])
def test_any_missing_key_of_an_autoencoder_is_named(config: vavae.tokenizer.AutoencoderConfig) -> None:
    with torch.device("meta"):
        build = functools.cache(vavae.AutoencoderKL)
        state = build(config).state_dict()
        for key in dict.fromkeys([*list(state)[::7], *(name for name in SHOWN if name in state)]):
            rest = {other: value for other, value in state.items() if other != key}
            with pytest.raises(UserError, match=r"missing (.*, )?" + re.escape(key)):
                load_strictly(build(infer_autoencoder(rest, "file")), rest, "file")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "use_rope", False),
        ("model", "use_rmsnorm", False),
        ("model", "use_swiglu", False),
        ("model", "use_qknorm", True),
        ("model", "wo_shift", True),
        ("model", "in_chans", 32),
        ("data", "num_classes", 1000),
    ],
)
def test_weights_must_have_the_parts_of_the_configuration(
    section: str, key: str, value: object, tmp_path: Path
) -> None:
    content = training_checkpoint(golden_dit()[0])
    stated = {"use_rope": True, "use_rmsnorm": True, "use_swiglu": True, "use_qknorm": False, "wo_shift": False}
    config = {**content["config"], "model": {**stated, "in_chans": 8}}
    torch.save({**content, "config": config}, tmp_path / "a.pt")
    assert load_transformer(tmp_path / "a.pt").report.tensors == 39
    torch.save({**content, "config": {**config, section: {**config[section], key: value}}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=rf"a\.pt: its configuration says {section}\.{key} {value}, its weights say"):
        load_transformer(tmp_path / "a.pt")


def test_extra_keys_are_named(tmp_path: Path) -> None:
    state = {**weights(SMALL), "encoder.extra.weight": torch.zeros(3)}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt: extra encoder\.extra\.weight"):
        load_autoencoder(tmp_path / "a.pt")
    torch.save({**golden_dit()[0].state_dict(), "blocks.0.attn.rel_pos": torch.zeros(3)}, tmp_path / "b.pt")
    with pytest.raises(UserError, match=r"b\.pt: extra blocks\.0\.attn\.rel_pos"):
        load_transformer(tmp_path / "b.pt")


def test_weights_must_have_the_size_of_the_configuration(tmp_path: Path) -> None:
    content = training_checkpoint(golden_dit()[0])
    content["config"] = {**content["config"], "model": {"model_type": "LightningDiT-XL/1"}}
    torch.save(content, tmp_path / "a.pt")
    assert "its configuration says XL/1" in str(load_transformer(tmp_path / "a.pt").report)
    # The last blocks are missing: the numbers have no gap, but the size has another depth.
    short = vavae.LightningDiT.from_size("S/1", depth=2, latent_size=2, latent_channels=4, num_classes=2)
    content = {"ema": dict(short.state_dict()), "config": {"model": {"model_type": "LightningDiT-S/1"}}}
    torch.save(content, tmp_path / "b.pt")
    with pytest.raises(UserError, match="configuration says S/1, its weights are depth 2"):
        load_transformer(tmp_path / "b.pt")


def test_unknown_sampling_settings_do_not_prevent_loading(tmp_path: Path, stats: Path) -> None:
    content = training_checkpoint(golden_dit()[0])
    content["config"] = {**content["config"], "sample": {"sampling_method": "adams"}}
    torch.save(content, tmp_path / "a.pt")
    tokenizer = Tokenizer(autoencoder(SMALL)[0], LatentStatistics.from_dict(statistics(8)))
    generator = Generator.from_pretrained(tmp_path / "a.pt", tokenizer=tokenizer)
    assert generator.sampling == SamplingConfig()
    assert "sampling defaults are ours: config: sample.sampling_method must be" in str(generator.report)


def test_missing_statistics_are_named_with_a_remedy(tmp_path: Path, stats: Path) -> None:
    torch.save(weights(SMALL), tmp_path / "vavae.pt")
    with pytest.raises(UserError, match=r"vavae\.pt: comes without the statistics .* latents_stats\.pt .*vavae encode"):
        Tokenizer.from_pretrained(tmp_path / "vavae.pt")
    # The published folder has its statistics.
    assert Tokenizer.from_pretrained(tmp_path).statistics.channels == 8
    given = scaling_statistics(8, 0.18215)
    assert Tokenizer.from_pretrained(tmp_path / "vavae.pt", statistics=given).statistics is given
    raw = Tokenizer.from_pretrained(tmp_path / "vavae.pt", statistics="identity")
    latents = torch.randn(1, 8, 2, 2)
    assert torch.equal(raw.statistics.normalize(latents), latents)
    torch.save(statistics(4), stats)
    with pytest.raises(UserError, match="4 channels do not fit an autoencoder with 8"):
        Tokenizer.from_pretrained(tmp_path / "vavae.pt", statistics=stats)
    torch.save({"mean": torch.zeros(8)}, stats)
    with pytest.raises(UserError, match=r"latents_stats\.pt: latent statistics must have the tensors mean and std"):
        Tokenizer.from_pretrained(tmp_path / "vavae.pt", statistics=stats)
    torch.save({"mean": torch.zeros(8), "std": torch.zeros(8)}, stats)
    with pytest.raises(UserError, match=r"latents_stats\.pt: .*positive"):
        Tokenizer.from_pretrained(tmp_path / "vavae.pt", statistics=stats)


def test_statistics_are_recognized_by_name(tmp_path: Path, stats: Path) -> None:
    model = golden_dit()[0]
    torch.save(training_checkpoint(model), tmp_path / "lightningdit_state.pt")
    torch.save(statistics(8), tmp_path / "latents_stats_of_mine.pt")
    Tokenizer(autoencoder(SMALL)[0], LatentStatistics.from_dict(statistics(8))).save_pretrained(tmp_path / "tokenizer")
    assert same_weights(Generator.from_pretrained(tmp_path).transformer, model)


def test_published_generator_needs_a_tokenizer(tmp_path: Path, stats: Path) -> None:
    torch.save(golden_dit()[0].state_dict(), tmp_path / "lightningdit.pt")
    with pytest.raises(UserError, match="comes without its tokenizer: pass tokenizer"):
        Generator.from_pretrained(tmp_path / "lightningdit.pt")
    model, _ = autoencoder(SD_VAE)
    with pytest.raises(UserError, match="8 channels does not fit a tokenizer with 4"):
        tokenizer = Tokenizer(model, LatentStatistics(torch.zeros(4), torch.ones(4)))
        Generator.from_pretrained(tmp_path / "lightningdit.pt", tokenizer=tokenizer)
    with pytest.raises(UserError, match="holds an autoencoder, not a transformer"):
        torch.save(model.state_dict(), tmp_path / "ae.pt")
        Generator.from_pretrained(tmp_path / "ae.pt", tokenizer=tokenizer)


def test_wrong_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.pt: no such file or folder"):
        Tokenizer.from_pretrained(tmp_path / "nothing.pt")
    with pytest.raises(UserError, match=r"must have config\.json, a checkpoint or latents"):
        Tokenizer.from_pretrained(tmp_path)
    for name in "ab":
        torch.save({}, tmp_path / f"{name}.pt")
    with pytest.raises(UserError, match="several checkpoints"):
        Generator.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"a\.pt: must be an autoencoder or a LightningDiT; .* nothing"):
        Tokenizer.from_pretrained(tmp_path / "a.pt")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="its names begin with fc"):
        Generator.from_pretrained(tmp_path / "a.pt")
