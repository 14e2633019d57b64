"""Loading from the hub, with a stand-in for its client."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import SMALL, autoencoder, golden_dit, same_weights, statistics
from standin_hub import StandInHub

import vavae
from vavae import AutoencoderKL, Generator, LightningDiT, SamplingConfig, Tokenizer, UserError
from vavae.checkpoints.folder import HubOptions
from vavae.cli import run
from vavae.tokenizer import LatentStatistics

TOKENIZER = ["config.json", "model.safetensors", "statistics.safetensors"]
READERS: list[Callable[..., Any]] = [
    Tokenizer.from_pretrained,
    Generator.from_pretrained,
    AutoencoderKL.from_pretrained,
    LightningDiT.from_pretrained,
]


@pytest.fixture(scope="module")
def generator() -> Generator:
    tokenizer = Tokenizer(autoencoder(SMALL)[0], LatentStatistics.from_dict(statistics(8)))
    return Generator(golden_dit()[0], tokenizer, sampling=SamplingConfig(steps=3))


@pytest.fixture
def hub(generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandInHub:
    """me/generator as it is uploaded, with files of its training."""
    monkeypatch.chdir(tmp_path)
    hub = StandInHub(tmp_path, monkeypatch)
    folder = hub.repositories / "me" / "generator"
    generator.save_pretrained(folder)
    for name in ("metrics.jsonl", "checkpoints/last.safetensors", "optimizer.pt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}")
    return hub


def test_only_needed_files_are_fetched(hub: StandInHub, generator: Generator) -> None:
    within = [f"tokenizer/{name}" for name in TOKENIZER]
    wanted = {
        Tokenizer: ["config.json", *within],
        AutoencoderKL: ["config.json", *within],
        LightningDiT: ["config.json", "model.safetensors"],
        Generator: ["config.json", "model.safetensors", *within],
    }
    for number, (kind, files) in enumerate(wanted.items()):
        hub.fetched.clear()
        model = kind.from_pretrained("me/generator", cache_dir=hub.cache / str(number))
        assert hub.fetched == files
    assert model([3]) == generator([3])


def test_autoencoder_of_a_pipeline_is_fetched_alone(hub: StandInHub, generator: Generator) -> None:
    folder = hub.repositories / "them" / "pipeline"
    generator.tokenizer.save_diffusers(folder / "vae")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    others = ("all.ckpt", "all.safetensors", "unet/a.safetensors", "vae/diffusion_pytorch_model.bin", "transformer/x")
    for name in others:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    tokenizer = Tokenizer.from_pretrained("them/pipeline")
    assert hub.fetched == ["model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    assert same_weights(tokenizer.autoencoder, generator.tokenizer.autoencoder)
    assert same_weights(AutoencoderKL.from_pretrained("them/pipeline"), generator.tokenizer.autoencoder)
    hub.fetched.clear()
    assert isinstance(Tokenizer.from_pretrained("them/pipeline", subfolder="vae"), Tokenizer)
    with pytest.raises(UserError, match="not a pipeline of a vavae generator"):
        Generator.from_pretrained("them/pipeline", cache_dir=hub.cache / "new")
    assert hub.fetched == ["model_index.json"]


def test_own_pipelines_and_published_files_are_fetched(hub: StandInHub, generator: Generator) -> None:
    generator.save_diffusers(hub.repositories / "me" / "pipeline")
    assert Generator.from_pretrained("me/pipeline")([3]) == generator([3])
    assert not {"pipeline.py", "transformer/lightningdit.py", "README.md"} & set(hub.fetched)
    hub.fetched.clear()
    assert same_weights(LightningDiT.from_pretrained("me/pipeline", cache_dir=hub.cache / "new"), generator.transformer)
    assert not any("vae" in name for name in hub.fetched)
    hub.fetched.clear()
    folder = hub.repositories / "them" / "published"
    folder.mkdir(parents=True)
    torch.save(generator.tokenizer.autoencoder.state_dict(), folder / "vavae.pt")
    torch.save(statistics(8), folder / "latents_stats.pt")
    (folder / "teaser.png").write_bytes(b"x")
    assert Tokenizer.from_pretrained("them/published").statistics.channels == 8
    assert hub.fetched == ["latents_stats.pt", "vavae.pt"]
    torch.save({}, folder / "other.pt")
    with pytest.raises(UserError, match=r"^them/published: several checkpoints \(other\.pt, vavae\.pt\)"):
        Tokenizer.from_pretrained("them/published")


@pytest.mark.parametrize("read", READERS)
def test_options_reach_the_hub(read: Callable[..., Any], hub: StandInHub, tmp_path: Path) -> None:
    read("me/generator@v1", token="secret", cache_dir=tmp_path / "there", force_download=True)
    assert {"token": "secret"} in hub.asked and {"revision": "v1"} in hub.asked
    wanted = {
        "revision": "v1",
        "token": "secret",
        "cache_dir": tmp_path / "there",
        "local_files_only": False,
        "force_download": True,
    }
    assert hub.asked[-1] == wanted and (tmp_path / "there").is_dir()
    read("me/generator", revision="v1", cache_dir=tmp_path / "there", local_files_only=True)
    assert hub.asked[-1]["local_files_only"] is True
    with pytest.raises(UserError, match=r"^revision must be v1, as in me/generator@v1, got v2"):
        read("me/generator@v1", revision="v2")
    with pytest.raises(TypeError, match="unexpected keyword argument 'revison'"):
        read("me/generator", revison="v1")
    assert read("me/generator", dtype=torch.bfloat16) is not None


def test_options_have_the_hubs_names() -> None:
    import inspect

    from huggingface_hub import snapshot_download

    assert set(HubOptions.__annotations__) - {"subfolder"} <= set(inspect.signature(snapshot_download).parameters)


def test_subfolder_of_a_local_folder_and_of_a_repository(hub: StandInHub, generator: Generator) -> None:
    model = Tokenizer.from_pretrained("me/generator", subfolder="tokenizer")
    assert same_weights(model.autoencoder, generator.tokenizer.autoencoder)
    assert hub.fetched == [f"tokenizer/{name}" for name in TOKENIZER]
    Tokenizer.from_pretrained(hub.repositories / "me/generator", subfolder="tokenizer")
    with pytest.raises(UserError, match=r"^me/generator: no files in absent/$"):
        Tokenizer.from_pretrained("me/generator", subfolder="absent")
    with pytest.raises(UserError, match="absent: no such folder"):
        Tokenizer.from_pretrained(hub.repositories / "me/generator", subfolder="absent")


def test_cached_files_are_read_without_the_hub(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^model 'me/generator' is not in the cache, and the hub was not reached$"):
        Tokenizer.from_pretrained("me/generator", local_files_only=True)
    Tokenizer.from_pretrained("me/generator")
    hub.online = False
    Tokenizer.from_pretrained("me/generator")
    monkeypatch.setenv("VAVAE_OFFLINE", "1")
    hub.asked.clear()
    Tokenizer.from_pretrained("me/generator")
    assert all(options.get("local_files_only") for options in hub.asked)
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        Generator.from_pretrained("me/generator")


def test_damaged_file_in_the_cache_is_refused(hub: StandInHub, generator: Generator) -> None:
    generator.tokenizer.save_diffusers(hub.repositories / "them" / "vae")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        Tokenizer.from_pretrained("them/vae")
        blob = (hub.cache / "them/vae/snapshots/main" / name).resolve()
        content = bytearray(blob.read_bytes())
        content[-3] ^= 1
        blob.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: damaged: .*; delete {blob} and fetch it again$"):
            Tokenizer.from_pretrained("them/vae")
        Tokenizer.from_pretrained("them/vae", force_download=True)


@pytest.mark.parametrize("read", READERS)
def test_mistyped_folder_does_not_reach_the_hub(
    read: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub = StandInHub(tmp_path, monkeypatch)
    Path("models").mkdir()
    wrong = (
        "./modles/x",
        "models/x",
        "models/x@main",
        "/absent/x",
        "~/absent-x",
        "runs/a/b",
        "absent",
        "../x/y",
        "a.pt",
    )
    for name in wrong:
        with pytest.raises(UserError) as caught:
            read(name)
        message = str(caught.value)
        assert message.startswith(f"{name}: no such file or folder") and len(message) < 120
    assert not hub.asked


def test_command_reports_a_missing_folder_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", str(tmp_path / "modles/x"), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"vavae: {tmp_path}/modles/x: no such file or folder\n"


@pytest.mark.parametrize(
    ("read", "options"),
    [
        (Tokenizer.from_pretrained, {"weights": "ema"}),
        (AutoencoderKL.from_pretrained, {"weights": "model"}),
        (LightningDiT.from_pretrained, {"heads": 2}),
        (Generator.from_pretrained, {"path": "cosine"}),
        (Generator.from_pretrained, {"prediction": "noise"}),
        (Generator.from_pretrained, {"weights": "ema"}),
    ],
)
def test_options_without_effect_are_refused(read: Callable[..., Any], options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(UserError, match=f"^{name} is for published checkpoints, not for .*demo.*, got {value!r}$"):
        read("demo", **options)


def test_networks_are_read_alone(generator: Generator, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path)
    assert same_weights(vavae.LightningDiT.from_pretrained(tmp_path), generator.transformer)
    for folder in (tmp_path, tmp_path / "tokenizer"):
        network = vavae.AutoencoderKL.from_pretrained(folder)
        assert same_weights(network, generator.tokenizer.autoencoder) and not network.training
    with pytest.raises(UserError, match="holds a tokenizer, not a transformer"):
        vavae.LightningDiT.from_pretrained(tmp_path / "tokenizer")
    torch.save(generator.transformer.state_dict(), tmp_path / "dit.pt")
    assert same_weights(vavae.LightningDiT.from_pretrained(tmp_path / "dit.pt"), generator.transformer)
