"""Checkpoints of other training code: sets of weights by their names, options in the file, unknown classes."""

import argparse
import functools
import math
import os
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_files import autoencoder, same_weights
from safetensors.torch import save_file
from torch import Tensor

from vavae import Generator, LightningDiT, Tokenizer
from vavae.checkpoints.loading import load_autoencoder, load_transformer
from vavae.cli import run
from vavae.errors import UserError
from vavae.tokenizer import AutoencoderConfig

SMALL = AutoencoderConfig(4, 32, channel_multipliers=(1, 2), blocks_per_level=1, attention_levels=())


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@functools.cache
def weights() -> dict[str, Tensor]:
    return autoencoder(SMALL)[0].state_dict()


@functools.cache
def moved() -> dict[str, Tensor]:
    return {name: value + 1 for name, value in weights().items()}


def loaded(content: Any, which: str = "auto") -> tuple[dict[str, Tensor], str]:
    torch.save(content, "a.ckpt")
    found = load_autoencoder(Path("a.ckpt"), which)
    return found.model.state_dict(), str(found.report)


@pytest.mark.parametrize(
    "name", ["ema", "model_ema", "ema_model", "state_dict_ema", "params_ema", "ema_state_dict", "ema_0.9999"]
)
def test_averaged_weights_are_found_by_name(name: str) -> None:
    state, report = loaded({"model": weights(), name: moved(), "epoch": 5})
    assert same_weights(state, moved())
    assert f"numbers loaded from '{name}'" in report and "left out model: weights that are not averaged" in report


@pytest.mark.parametrize("name", ["ema", "ema_0.9999"])
def test_a_set_of_weights_can_be_chosen(name: str) -> None:
    content = {"model": weights(), name: moved(), "epoch": 5}
    assert same_weights(loaded(content, "model")[0], weights())
    assert same_weights(loaded(content, name)[0], moved())
    assert same_weights(loaded({name: moved()})[0], moved())
    with pytest.raises(UserError, match=rf"weights must be one of its sets \(model, {name}\), got other"):
        loaded(content, "other")


@pytest.mark.parametrize(
    ("content", "plain", "averaged"),
    [
        ({"state_dict": weights(), "ema": {"state_dict": moved(), "decay": 0.9}}, "state_dict", "ema.state_dict"),
        ({"model": {"module": weights()}, "ema": {"module": moved()}}, "model.module", "ema.module"),
        ({"nets": {"vae": weights(), "vae_ema": moved()}, "step": 3}, "nets.vae", "nets.vae_ema"),
        ({"model": defaultdict(int, weights()), "ema": defaultdict(int, moved())}, "model", "ema"),
    ],
)
def test_nested_sets_of_weights(content: Any, plain: str, averaged: str) -> None:
    state, report = loaded(content)
    assert same_weights(state, moved())
    assert f"numbers loaded from '{averaged}'" in report and f"left out {plain}: weights that are not" in report
    assert same_weights(loaded(content, "model")[0], weights())
    assert same_weights(loaded(content, plain)[0], weights())


def test_optimizer_state_is_not_weights() -> None:
    moments = {"state": {name: {"exp_avg": value} for name, value in weights().items()}}
    state, report = loaded({"model": weights(), "optimizer": moments, "second": moments})
    assert same_weights(state, weights())
    assert "left out optimizer: state of the optimizer" in report and "left out second: not weights" in report


def test_averages_without_names_are_reported() -> None:
    state, report = loaded({"model": weights(), "ema": {"decay": 0.99, "shadow_params": [torch.zeros(3)]}})
    assert same_weights(state, weights())
    assert "left out ema: averaged weights without the names of the network" in report


def test_ldm_averages_get_the_names_of_the_network() -> None:
    state = {**weights(), "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3)}
    state |= {f"model_ema.{name.replace('.', '')}": value for name, value in moved().items()}
    for content in (state, {"state_dict": state}):
        assert same_weights(loaded(content)[0], moved())
        assert same_weights(loaded(content, "ema")[0], moved())
        assert same_weights(loaded(content, "model")[0], weights())
    with pytest.raises(UserError, match="the names of its averages do not fit its weights: strangeweight"):
        loaded({**state, "model_ema.strangeweight": torch.zeros(1)})


@pytest.mark.parametrize("prefix", ["first_stage_model.", "model.", "module.model.", "_orig_mod.vae."])
def test_prefix_before_the_network_is_removed(prefix: str) -> None:
    named = {prefix + name: value for name, value in weights().items()}
    assert same_weights(loaded(named)[0], weights())
    other = {"cond_stage_model.a": torch.zeros(1), "model_ema.diffusionweight": torch.zeros(1)}
    state, report = loaded({"state_dict": {**named, **other}})
    assert same_weights(state, weights())
    assert "left out cond_stage_model.*: not part of the network" in report
    assert "left out model_ema.*: averages of another network" in report


def test_averages_under_a_prefix_are_found() -> None:
    both = {f"online_model.{name}": value for name, value in weights().items()}
    both |= {f"ema_model.{name}": value for name, value in moved().items()}
    assert same_weights(loaded(both)[0], moved())
    assert same_weights(loaded(both, "online_model")[0], weights())


def test_missing_quant_conv_is_an_identity(capsys: pytest.CaptureFixture[str]) -> None:
    state = {name: value for name, value in weights().items() if "quant_conv" not in name}
    save_file(state, "flux.safetensors")
    found = load_autoencoder(Path("flux.safetensors"))
    latent = torch.randn(1, 4, 2, 2)
    assert torch.equal(found.model.post_quant_conv(latent), latent)
    assert "it has no quant_conv: identities were added" in str(found.report)
    assert run(["convert", "flux.safetensors", "out"]) == 2
    assert "--scaling_factor and --shift_factor" in capsys.readouterr().err
    assert run(["convert", "flux.safetensors", "out", "--scaling_factor", "0.3611", "--shift_factor", "0.1159"]) == 0
    assert "identities were added" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimizer": {"state": {}}, "epoch": 3}, "must have weights of a network, got epoch, optimizer"),
        ({**weights(), "quant_conv.weight": torch.zeros(8, 8, 1, 1, dtype=torch.int8)}, "quant_conv.weight holds int8"),
        (
            {name: value.to(torch.float8_e4m3fn) for name, value in weights().items()},
            "holds float8_e4m3fn, not weights; quantized files cannot be read, use the file in float32, float16",
        ),
    ],
    ids=["optimizer", "int8", "fp8"],
)
def test_files_without_usable_weights_are_refused(content: Any, message: str) -> None:
    with pytest.raises(UserError, match=r"a\.ckpt") as caught:
        loaded(content)
    assert message in str(caught.value)


class Unknown:
    """A class of a package that is not installed."""

    def __init__(self) -> None:
        self.ran = True


class UnknownDict(dict[str, Any]):
    """The same, as a kind of dictionary."""


def test_unknown_classes_are_placeholders(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("absent_package")
    for kind in (Unknown, UnknownDict):
        monkeypatch.setattr(kind, "__module__", "absent_package")
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "absent_package", module)
    options = {
        "instance": Unknown(),
        "dictionary": UnknownDict(a=1),
        "function": os.getcwd,
        "path": Path("a"),
        "number": np.float64(3),
        "default": defaultdict(dict, a={}),
    }
    content = {"state_dict": weights(), "callbacks": {Unknown: {"best": 1.0}}, "hyper_parameters": options}
    torch.save(content, "a.ckpt")
    torch.save(content, "old.ckpt", _use_new_zipfile_serialization=False)
    monkeypatch.delitem(sys.modules, "absent_package")
    for path in ("a.ckpt", "old.ckpt"):
        found = load_autoencoder(Path(path))
        assert same_weights(found.model, weights())
        assert "absent_package.Unknown" in str(found.report)
        assert "absent_package" not in sys.modules


def transformer() -> LightningDiT:
    torch.manual_seed(0)
    model = LightningDiT(
        latent_size=8,
        patch_size=2,
        latent_channels=4,
        width=32,
        depth=1,
        heads=2,
        num_classes=10,
        swiglu=False,
        rope=False,
        rmsnorm=False,
        learn_sigma=True,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def checkpoint(args: Any = None) -> Path:
    state = transformer().state_dict()
    torch.save({"model": state, "ema": state} | ({} if args is None else {"args": args}), "dit.pt")
    return Path("dit.pt")


def generator(**options: Any) -> Generator:
    tokenizer = Tokenizer.from_pretrained(_tokenizer_file(), statistics="identity")
    return Generator.from_pretrained("dit.pt", tokenizer=tokenizer, heads=2, **options)


def _tokenizer_file() -> str:
    torch.save(weights(), "vae.pt")
    return "vae.pt"


def plain_sit(model: LightningDiT, noise: Tensor, labels: Tensor, steps: int, path: str, prediction: str) -> Tensor:
    """Integrate SiT's probability-flow ODE by Euler: drift = a'/a x + (a'/a s² - s s') score, t from 0 (noise) to 1."""
    x = noise.double()
    times = torch.linspace(1e-3, 1 - 1e-3, steps, dtype=torch.float64)
    for t, end in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        if path == "GVP":
            a, s = math.sin(t * math.pi / 2), math.cos(t * math.pi / 2)
            da, ds = s * math.pi / 2, -a * math.pi / 2
        else:
            a, s, da, ds = t, 1 - t, 1.0, -1.0
        with torch.no_grad():
            out = model(x.float(), torch.full((len(x),), t), labels).double()
        score = -out / s if prediction == "noise" else out
        x = x + (end - t) * (da / a * x + (da / a * s**2 - s * ds) * score)
    return x.float()


@pytest.mark.parametrize("path", ["GVP", "Linear"])
@pytest.mark.parametrize("prediction", ["noise", "score"])
def test_sit_is_sampled_by_its_args(path: str, prediction: str) -> None:
    checkpoint(argparse.Namespace(path_type=path, prediction=prediction, model="SiT-XL/2"))
    ours = generator()
    assert (ours.path, ours.prediction) == ({"GVP": "cosine", "Linear": "linear"}[path], prediction)
    assert ours.sampling.shift == 0 and "assumed: cfg_scale 1.0, sampling_method euler" in str(ours.report)
    assert f"taken from its args: path {ours.path}, prediction {prediction}" in str(ours.report)
    labels = [1, 2]
    expected = plain_sit(transformer(), ours.noise([0, 1]), torch.tensor(labels), 50, path, prediction)
    assert (ours.latents(labels, steps=50) - expected).norm() < 1e-3 * expected.norm()


def test_options_in_a_dictionary_are_read() -> None:
    checkpoint({"path_type": "VP", "prediction": "velocity"})
    assert (generator().path, generator().prediction) == ("vp", "velocity")
    checkpoint({"path_type": "linear", "prediction": "x0"})
    with pytest.raises(UserError, match=r"dit\.pt: args\.prediction must be one of velocity, noise, score, v, got x0"):
        generator()


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({"model": "DiT-XL/2"}, "args.model DiT-XL/2 is not known as a flow"),
        ({"model": "MDTv2_XL_2", "mask_ratio": 0.3}, "args.model MDTv2_XL_2 is not known as a flow"),
        ({"diffusion_steps": 1000, "model": "MDT"}, "args.diffusion_steps 1000 is of a diffusion of discrete steps"),
    ],
)
def test_diffusion_with_discrete_steps_is_refused(
    args: dict[str, Any], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(argparse.Namespace(**args))
    given = ["convert", "dit.pt", "out", "--tokenizer", _tokenizer_file(), "--scaling_factor", "1", "--heads", "2"]
    assert run(given) == 2
    error = capsys.readouterr().err
    assert f"{why}, and only flows are sampled here" in error
    assert len(error.splitlines()) == 1
    assert run([*given, "--path", "linear", "--prediction", "velocity"]) == 0
    assert load_transformer(Path("dit.pt"), heads=2).report.tensors > 0


def test_path_and_prediction_are_given_or_assumed() -> None:
    checkpoint()
    assert "assumed, as the file does not say: path linear, prediction velocity" in str(generator().report)
    given = generator(path="cosine", prediction="noise")
    assert (given.path, given.prediction) == ("cosine", "noise")
    assert "as the file does not say: path" not in str(given.report)
    checkpoint(argparse.Namespace(path_type="GVP", prediction="noise"))
    with pytest.raises(UserError, match="path must be cosine, as its file says, got linear"):
        generator(path="linear")
