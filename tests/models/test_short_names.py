"""Published models by their short names, from a stand-in hub with their files and layouts."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rae_files
import torch
from published_files import SMALL, autoencoder, golden_dit, same_weights, statistics, weights
from standin_hub import StandInHub, put_published
from tiny_vit import write_tiny_encoder

from vavae import AutoencoderKL, Generator, LightningDiT, SamplingConfig, Tokenizer, UserError
from vavae.cli import run
from vavae.commands.serve import Config as ServeConfig
from vavae.commands.serve import build
from vavae.flow import FlowConfig
from vavae.models import representation_files
from vavae.stages.initial import load_initial, load_initial_transformer
from vavae.teachers import load_teacher
from vavae.tokenizer import LatentStatistics
from vavae.tokenizer.vit_decoder import SIZES

XL, VAVAE = "lightningdit-xl-imagenet256-800ep", "vavae-imagenet256-f16d32-dinov2"
LDM = "ldm-imagenet256-f16d32-50ep"
MEASURED = LatentStatistics.from_dict(statistics(8))
FEW = ["--steps", "3", "--device", "cpu"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandInHub:
    monkeypatch.chdir(tmp_path)
    hub = StandInHub(tmp_path, monkeypatch)
    put_published(hub)
    return hub


@pytest.mark.parametrize(
    ("name", "scale", "start"),
    [
        (XL, 6.7, 0.125),
        ("lightningdit-xl-imagenet256-64ep", 10.0, 0.1),
        (f"hustvl/{XL}", 6.7, 0.125),
    ],
)
def test_generator_has_all_three_parts(name: str, scale: float, start: float, hub: StandInHub) -> None:
    generator = Generator.from_pretrained(name)
    file = f"{name.removeprefix('hustvl/')}.pt"
    assert sorted(hub.fetched) == sorted([file, "latents_stats.pt", f"{VAVAE}.pt"])
    assert generator.sampling == SamplingConfig("euler", 250, 0.3, scale, start, 1.0, 3)
    assert same_weights(generator.transformer, golden_dit()[0])
    assert same_weights(generator.tokenizer.autoencoder, autoencoder(SMALL)[0])
    assert generator.tokenizer.statistics.equals(MEASURED)
    assert generator.provenance == {"converted_from": f"hustvl/{file.removesuffix('.pt')}"}
    assert generator.report is not None and "assumed" not in str(generator.report)
    assert generator([3], steps=3, guidance_scale=1.0, output_type="pt").shape == (1, 3, 8, 8)


def test_parts_are_read_alone(hub: StandInHub) -> None:
    transformer = LightningDiT.from_pretrained(XL)
    assert same_weights(transformer, golden_dit()[0]) and hub.fetched == [f"{XL}.pt"]
    hub.fetched.clear()
    for read in (Tokenizer.from_pretrained, AutoencoderKL.from_pretrained):
        for name in (VAVAE, XL):
            assert read(name) is not None
    assert hub.fetched == ["latents_stats.pt", f"{VAVAE}.pt"]
    assert Tokenizer.from_pretrained(XL).provenance == {"converted_from": f"hustvl/{VAVAE}"}
    with pytest.raises(UserError, match=f"^{VAVAE} must be a generator, got a tokenizer"):
        Generator.from_pretrained(VAVAE)


def test_options_reach_both_repositories(hub: StandInHub, tmp_path: Path) -> None:
    Generator.from_pretrained(f"{XL}@v1", token="secret", cache_dir=tmp_path / "there")
    revisions = [asked["revision"] for asked in hub.asked if asked.keys() == {"revision"}]
    assert revisions == ["v1", None]  # the revision is the transformer's
    assert all(asked["token"] == "secret" for asked in hub.asked if "token" in asked)
    hub.online = False
    hub.fetched.clear()
    Generator.from_pretrained(f"{XL}@v1", cache_dir=tmp_path / "there", local_files_only=True)
    half = Generator.from_pretrained(f"{XL}@v1", cache_dir=tmp_path / "there", dtype=torch.bfloat16)
    assert not hub.fetched and half.dtype == half.tokenizer.dtype == torch.bfloat16
    with pytest.raises(UserError, match="is not in the cache, and the hub was not reached"):
        Generator.from_pretrained(XL, cache_dir=tmp_path / "other")


def test_given_parts_come_before_the_registrys(hub: StandInHub) -> None:
    other = Tokenizer(autoencoder(SMALL)[0], LatentStatistics(torch.zeros(8), torch.full((8,), 2.0)))
    generator = Generator.from_pretrained(XL, tokenizer=other)
    assert hub.fetched == [f"{XL}.pt"] and generator.tokenizer is other
    with pytest.raises(UserError, match="path must be linear, as its file says, got cosine"):
        Generator.from_pretrained(XL, path="cosine")


def test_one_of_several_checkpoints_is_fetched_alone(hub: StandInHub) -> None:
    with pytest.raises(UserError, match=rf"^{LDM}: comes without the statistics.*vavae encode --tokenizer {LDM}' "):
        Tokenizer.from_pretrained(LDM)
    assert hub.fetched == [f"{LDM}.ckpt"]
    tokenizer = Tokenizer.from_pretrained(LDM, statistics=MEASURED)
    assert same_weights(tokenizer.autoencoder, autoencoder(SMALL)[0])
    with pytest.raises(UserError, match=r"variants: has no file ldm-imagenet256-f16d64-50ep\.ckpt"):
        Tokenizer.from_pretrained("ldm-imagenet256-f16d64-50ep", statistics=MEASURED)
    hub.online = False
    assert Tokenizer.from_pretrained(LDM, statistics=MEASURED).latent_channels == 8


def test_autoencoder_of_diffusers(hub: StandInHub) -> None:
    tokenizer = Tokenizer.from_pretrained("sd-vae-ft-mse")
    assert hub.fetched == ["config.json", "diffusion_pytorch_model.safetensors"]
    torch.testing.assert_close(tokenizer.statistics.std.flatten(), torch.full((8,), 1 / 0.18215))


def test_local_model_comes_before_the_short_name(hub: StandInHub, tmp_path: Path) -> None:
    (tmp_path / VAVAE).mkdir()
    Tokenizer.from_pretrained(VAVAE)
    assert hub.fetched
    hub.fetched.clear()
    torch.save(weights(SMALL), tmp_path / VAVAE / "mine.pt")
    with pytest.raises(UserError, match=f"^{VAVAE}: comes without the statistics"):
        Tokenizer.from_pretrained(VAVAE)
    assert not hub.fetched


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "lightningdit-xl-imagenet256-80ep"],
        ["evaluate", "generator", "lightningdit-xl-imagenet256-80ep"],
        ["convert", "lightningdit-xl-imagenet256-80ep", "out"],
        ["encode", "--tokenizer", "lightningdit-xl-imagenet256-80ep"],
        ["models", "lightningdit-xl-imagenet256-80ep"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_mistyped_name_is_one_line_with_the_nearest(
    arguments: list[str], hub: StandInHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    message = capsys.readouterr().err
    assert message.endswith(f"; did you mean '{XL}'?\n") and message.count("\n") == 1
    assert not hub.asked


@pytest.mark.slow
def test_commands_take_short_names(hub: StandInHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sample", XL, "--count", "2", "--output", "samples", *FEW]) == 0
    recorded = json.loads(Path("samples/samples.json").read_text())
    assert recorded["generator"] == XL and recorded["sampling"]["guidance_scale"] == 6.7
    images = ["--data.images", "demo", "--data.size", "8", "--data.limit", "4", "--device", "cpu"]
    assert run(["encode", "--tokenizer", VAVAE, "--output", "latents", *images]) == 0
    assert run(["convert", XL, "generator"]) == 0
    assert run(["convert", VAVAE, "tokenizer"]) == 0
    native = Generator.from_pretrained("generator")
    assert native.sampling.guidance_scale == 6.7 and native.provenance == {"converted_from": f"hustvl/{XL}"}
    assert native.tokenizer.statistics.equals(Tokenizer.from_pretrained("tokenizer").statistics)
    capsys.readouterr()


def test_training_starts_from_short_names(hub: StandInHub, capsys: pytest.CaptureFixture[str]) -> None:
    transformer, network = golden_dit()[0], autoencoder(SMALL)[0]
    for parameter in (*transformer.parameters(), *network.parameters()):
        parameter.data.zero_()
    said = load_initial_transformer(XL, transformer, FlowConfig(), MEASURED)
    assert same_weights(transformer, golden_dit()[0]) and "WARNING" not in said
    others: Any = torch.nn.Module()
    others.discriminator = others.alignment = None
    assert load_initial(XL, network, others) == f"initial: autoencoder from {XL}"
    assert same_weights(network, autoencoder(SMALL)[0])
    other = LatentStatistics(torch.zeros(8), torch.ones(8))
    assert "WARNING: its latents were normalized by other statistics" in load_initial_transformer(
        XL, transformer, FlowConfig(), other
    )


def test_web_page_takes_short_names(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = SimpleNamespace(build=lambda studio: studio)
    monkeypatch.setitem(sys.modules, "vavae.serve.page", shown)  # it imports gradio
    for name in (XL, VAVAE):
        studio = build(ServeConfig(model=name, device="cpu"))
        assert studio.name == name and (studio.generator is None) == (name == VAVAE)


def test_rae_is_read_from_its_collection(hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = hub.repositories / "nyu-visionx/RAE-collections"
    paths = {
        "decoder": "decoders/dinov2/wReg_base/ViTXL_n08/model.pt",
        "other": "decoders/mae/base_p16/ViTXL_n08/model.pt",
        "stat": "stats/dinov2/wReg_base/imagenet1k/stat.pt",
        "dit": "DiTs/Dinov2/wReg_base/ImageNet256/DiTDH-XL/stage2_model.pt",
    }
    for name, content in (
        ("decoder", rae_files.decoder().state_dict()),
        ("other", {}),
        ("stat", rae_files.stat()),
        ("dit", rae_files.ditdh().state_dict()),
    ):
        (collection / paths[name]).parent.mkdir(parents=True)
        torch.save(content, collection / paths[name])
    monkeypatch.setitem(SIZES, "tiny", rae_files.DECODER)
    asked = []
    tiny = write_tiny_encoder(tmp_path / "teacher", "dinov2")
    monkeypatch.setattr(representation_files, "load_teacher", lambda name: asked.append(name) or load_teacher(tiny))
    generator = Generator.from_pretrained("rae-ditdh-xl-imagenet256")
    assert asked == ["dinov2-registers-base"]
    assert sorted(hub.fetched) == sorted(paths[name] for name in ("decoder", "stat", "dit"))
    assert generator.sampling == SamplingConfig("euler", 50, 0.5, end=0.999, guidance_start=0.0)  # 64 x 16 x 16 latents
    assert same_weights(generator.transformer, rae_files.ditdh())
    assert generator.tokenizer.statistics.equals(LatentStatistics.from_dict(rae_files.stat()))
    assert generator.provenance == {"converted_from": "nyu-visionx/RAE-collections"}
    assert generator([1], steps=3, output_type="pt").shape == (1, 3, 32, 32)
    for name in ("rae-dinov2-base", "rae-ditdh-xl-imagenet256"):
        assert Tokenizer.from_pretrained(name).statistics.equals(generator.tokenizer.statistics)
