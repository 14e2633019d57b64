"""Our autoencoder and the one of diffusers, our generator and its pipeline: equal weights, equal outputs."""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import MAR_VAE, SD_VAE, SMALL_F16, VA_VAE, autoencoder, golden_dit, same_weights, statistics
from safetensors.torch import load_file, save_file
from torch import Tensor

from vavae.checkpoints.diffusers_autoencoder import diffusers_config
from vavae.checkpoints.statistics import scaling_statistics
from vavae.errors import UserError
from vavae.models import Generator, SamplingConfig, Tokenizer
from vavae.models.diffusers.pipeline import transformer_source
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL, LatentStatistics
from vavae.transformer.routing import RoutingConfig

TWO_LEVELS = AutoencoderConfig(4, 32, (1, 2, 3), blocks_per_level=1, attention_levels=(1, 2))
NARROW = AutoencoderConfig(4, 16, (1, 3), attention_levels=(1,))


def published_class() -> Any:
    import diffusers  # takes five seconds: not at collection, which every worker does

    return diffusers.AutoencoderKL


def tokenizer_of(config: AutoencoderConfig, seed: int = 0) -> Tokenizer:
    torch.manual_seed(seed)
    model = AutoencoderKL(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.1)
    return Tokenizer(model, LatentStatistics.from_dict(statistics(config.latent_channels)))


def images(side: int = 32) -> Tensor:
    return torch.rand(2, 3, side, 2 * side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def assert_equal_outputs(ours: Tokenizer, other: Any) -> None:
    x = images()
    with torch.no_grad():
        posterior, expected = other.encode(x).latent_dist, ours.autoencoder.encode(x)
        torch.testing.assert_close(posterior.mean, expected.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(posterior.logvar, expected.logvar, rtol=1e-4, atol=1e-5)
        decoded = other.decode(expected.mean).sample
        torch.testing.assert_close(decoded, ours.autoencoder.decode(expected.mean), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "config", [VA_VAE, MAR_VAE, SD_VAE, TWO_LEVELS, NARROW], ids=["va", "mar", "sd", "two", "narrow"]
)
def test_autoencoders_give_equal_outputs_both_ways(config: AutoencoderConfig, tmp_path: Path) -> None:
    ours = tokenizer_of(config)
    ours.save_diffusers(tmp_path / "diffusers")
    other = published_class().from_pretrained(tmp_path / "diffusers")
    assert_equal_outputs(ours, other)
    assert same_weights(ours.to_diffusers(), other)

    other.save_pretrained(tmp_path / "again")  # as diffusers writes it
    back = Tokenizer.from_pretrained(tmp_path / "again")
    assert back.autoencoder.config == config
    assert same_weights(back.autoencoder, ours.autoencoder)
    assert torch.equal(back.statistics.mean, ours.statistics.mean)
    assert torch.equal(back.statistics.std, ours.statistics.std)
    assert same_weights(Tokenizer.from_diffusers(other).autoencoder, ours.autoencoder)


def test_autoencoder_of_diffusers_loads() -> None:
    torch.manual_seed(0)
    other = published_class()(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    ).eval()
    ours = Tokenizer.from_diffusers(other)
    assert_equal_outputs(ours, other)
    latents = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(ours.statistics.normalize(latents), (latents - 0.25) * 0.5)


def test_factor_multiplies_means_and_deviations() -> None:
    """As in diffusers' SDXL pipelines, the decoder gets latents · std / scaling_factor + mean."""
    mean, std, factor = (0.5, -1.0, 2.0, 0.0), (1.0, 2.0, 4.0, 8.0), 0.5
    other = published_class()(
        block_out_channels=(32,), latent_channels=4, scaling_factor=factor, latents_mean=mean, latents_std=std
    )
    ours = Tokenizer.from_diffusers(other)
    latents = torch.randn(2, 4, 3, 3)
    expected = latents * torch.tensor(std).view(1, -1, 1, 1) / factor + torch.tensor(mean).view(1, -1, 1, 1)
    torch.testing.assert_close(ours.statistics.denormalize(latents), expected)
    # The factor is written once, into the deviations.
    config = diffusers_config(ours.autoencoder.config, ours.statistics)
    assert config["scaling_factor"] == 1.0
    torch.testing.assert_close(torch.tensor(config["latents_std"]), torch.tensor(std) / factor)


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the names of the published SD-VAE, which an early diffusers saved."""
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    result = {}
    for name, value in state.items():
        for new, old in renamed.items():
            name = name.replace(f".{new}.", f".{old}.")
        result[name] = value
    return result


@pytest.mark.slow
@pytest.mark.parametrize("stated", [True, False])
def test_published_sd_vae_loads(stated: bool, tmp_path: Path) -> None:
    model, _ = autoencoder(SD_VAE)
    config = diffusers_config(SD_VAE, scaling_statistics(4, 0.18215))
    assert config["scaling_factor"] == 0.18215
    assert config["shift_factor"] is None
    assert "latents_mean" not in config and "latents_std" not in config  # diffusers would multiply them
    if not stated:  # the default of diffusers is the same number
        del config["scaling_factor"]
    other = published_class().from_config(config)
    names = Tokenizer(model, scaling_statistics(4, 0.18215)).to_diffusers().state_dict()
    other.load_state_dict(names)
    save_file(old_names(names), tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "diffusion_pytorch_model.safetensors"):
        tokenizer = Tokenizer.from_pretrained(path)
        assert tokenizer.autoencoder.config == SD_VAE
        assert tokenizer.factor == 8
        assert same_weights(tokenizer.autoencoder, model)
        latents = torch.randn(1, 4, 2, 2)
        torch.testing.assert_close(tokenizer.statistics.normalize(latents), latents * 0.18215)
        # The golden weights amplify rounding.
        with torch.no_grad():
            decoded, expected = other.decode(latents).sample, tokenizer.autoencoder.decode(latents)
        assert (decoded - expected).norm() < 1e-3 * expected.norm()
    torch.save(old_names(names), tmp_path / "diffusion_pytorch_model.bin")
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    assert same_weights(Tokenizer.from_pretrained(tmp_path).autoencoder, model)


def test_missing_quant_conv_becomes_an_identity(tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = published_class()(block_out_channels=(32,), use_quant_conv=False, use_post_quant_conv=False).eval()
    other.save_pretrained(tmp_path)
    ours = Tokenizer.from_pretrained(tmp_path)
    assert_equal_outputs(ours, other)
    assert ours.report is not None
    assert "identities were added" in str(ours.report)


def test_unsupported_autoencoders_are_refused(tmp_path: Path) -> None:
    for config in (
        AutoencoderConfig(4, 32, (2, 2), attention_levels=()),
        AutoencoderConfig(4, 16, (1, 2), attention_levels=()),
    ):
        with pytest.raises(UserError, match="diffusers cannot build"):
            tokenizer_of(config).save_diffusers(tmp_path / "no")
    grouped = published_class()(block_out_channels=(32,), norm_num_groups=8)
    grouped.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="AutoencoderKL: norm_num_groups must be 32, got 8"):
        Tokenizer.from_diffusers(grouped)
    by_position = LatentStatistics(torch.zeros(4, 2, 2), torch.ones(4, 2, 2))
    with pytest.raises(UserError, match="statistics must be one number per channel for diffusers"):
        Tokenizer(tokenizer_of(NARROW).autoencoder, by_position).save_diffusers(tmp_path / "no")
    with pytest.raises(UserError, match=r"config\.json: norm_num_groups must be 32, got 8"):
        Tokenizer.from_pretrained(tmp_path)
    published_class()(block_out_channels=(32,), mid_block_add_attention=False).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"missing .*mid\.attn_1"):
        Tokenizer.from_pretrained(tmp_path)


def generator(sampling: SamplingConfig | None = None, **shape: object) -> Generator:
    model = golden_dit("dit_qknorm_noshift")[0] if not shape else None
    if model is None:
        from vavae.transformer import LightningDiT

        model = LightningDiT(**{"latent_channels": 8, "width": 48, "depth": 2, "heads": 2, "num_classes": 3, **shape})
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    sampling = sampling or SamplingConfig(steps=12, guidance_scale=2.5, guidance_start=0.2, guidance_stop=0.9)
    names = [f"class {i}" for i in range(model.config.num_classes)]
    return Generator(model, tokenizer_of(SMALL_F16), sampling=sampling, class_names=names)


RUN = """
import sys
import torch
from diffusers import DiffusionPipeline

torch.set_num_threads(1)
for folder in folders:
    given = torch.load(f"{folder}/reference.pt")
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    labels, one_step = given["labels"], {"class_labels": 1, "num_inference_steps": 1}
    options = {"latents": given["noise"], "height": given["size"][0], "width": given["size"][1]}
    seen = []

    def stop(pipeline, step, timestep, tensors):
        seen.append((step, tuple(tensors["latents"].shape)))
        pipeline._interrupt = step == 1
        return {"latents": torch.zeros_like(tensors["latents"])}

    def sentence(**wrong):
        try:
            pipeline(**{**one_step, **wrong})
        except ValueError as error:
            return str(error)

    pipeline.save_pretrained(f"{folder}/saved")
    again = DiffusionPipeline.from_pretrained(f"{folder}/saved", trust_remote_code=True)
    again.set_progress_bar_config(disable=True)
    done = {
        "again": again(labels, output_type="latent", **options).images,
        "again_drawn": again(generator=torch.Generator().manual_seed(0), output_type="np", **one_step).images,
        "stopped": pipeline(labels, output_type="latent", callback_on_step_end=stop, **options).images,
        "seen": seen,
        "sentences": [
            sentence(class_labels=["class 1", "dog"]),
            sentence(class_labels=[99]),
            sentence(class_labels=1.5),
            sentence(class_labels=[]),
            sentence(height=30),
            sentence(latents=torch.zeros(1, 2, 8, 8)),
            sentence(num_inference_steps=0),
            sentence(guidance_scale=2.0, guidance_kind="zero_star"),
            sentence(guidance_kind="auto"),
            sentence(callback_on_step_end_tensor_inputs=["prompt_embeds"]),
        ],
        "latents": pipeline(labels, output_type="latent", **options).images,
        "images": pipeline(labels, output_type="pt", **options).images,
        "by_name": pipeline([f"class {i}" for i in labels], output_type="latent", **options).images,
        "still": pipeline(labels, guidance_kind="zero_star", zero_init_steps=2, output_type="latent", **options).images,
        "plain": pipeline(labels, guidance_scale=1.0, output_type="latent", **options).images,
        "drawn": pipeline(generator=torch.Generator().manual_seed(0), output_type="np", **one_step).images,
        "pil": pipeline(generator=torch.Generator().manual_seed(0), **one_step).images[0].size,
        "imported": [name for name in sys.modules if name.split(".")[0] == "vavae"],
    }
    torch.save(done, f"{folder}/result.pt")
"""


class _Absent:
    """Let no module of this package be found."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] == "vavae":
            raise ModuleNotFoundError(name)


def run_without_this_package(folders: list[str], modules: Path) -> None:
    """Run `RUN` in a fork without the modules of this package; a new process would import diffusers again."""
    from diffusers.utils import dynamic_modules_utils

    child = os.fork()
    if child == 0:
        try:
            dynamic_modules_utils.HF_MODULES_CACHE = str(modules)
            sys.meta_path.insert(0, _Absent())
            for name in [name for name in sys.modules if name.split(".")[0] == "vavae"]:
                del sys.modules[name]
            exec(RUN, {"folders": folders})
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.slow
def test_exported_generators_run_without_this_package(tmp_path: Path) -> None:
    few = SamplingConfig(
        steps=7, guidance_scale=3.0, guidance_start=0.2, guidance_stop=0.9, guidance_channels=3, shift=0.0
    )
    own_head = SamplingConfig(steps=5, guidance_scale=3.0, guidance_kind="internal", end=0.9)
    no_path = SamplingConfig(steps=5, guidance_scale=2.0, guidance_kind="path_drop")
    generators = {
        "wide": generator(few, latent_size=(2, 4), qk_norm=True, adaln_shift=False),
        "internal": generator(own_head, latent_size=2, auxiliary_block=1),
        "sprint": generator(no_path, latent_size=2, depth=3, routing=RoutingConfig("sprint", start=1)),
    }
    labels = [2, 0]
    for name, ours in generators.items():
        ours.save_diffusers(tmp_path / name)
        size = tuple(16 * side for side in ours.latent_shape[1:])
        given = {"noise": ours.noise([4, 9], seed=3), "labels": labels, "size": size}
        torch.save(given, tmp_path / name / "reference.pt")
    run_without_this_package([str(tmp_path / name) for name in generators], tmp_path / "modules")
    for name, ours in generators.items():
        other = torch.load(tmp_path / name / "result.pt", weights_only=False)
        assert other["imported"] == []
        latents = ours.latents(labels, seed=3, indices=[4, 9])
        torch.testing.assert_close(other["latents"], latents, rtol=1e-4, atol=1e-5)
        assert torch.equal(other["by_name"], other["latents"])
        assert torch.equal(other["again"], other["latents"]) and (other["again_drawn"] == other["drawn"]).all()
        assert not other["stopped"].any() and other["seen"] == [(i, tuple(latents.shape)) for i in (0, 1)]
        most = ours.num_classes
        allowed = f"class_labels must be numbers from 0 to {most} ({most} means no label), or names of classes, got"
        shape = (1, *ours.latent_shape)
        assert other["sentences"] == [
            f"{allowed} 'dog'",
            f"{allowed} 99",
            f"{allowed} 1.5",
            "class_labels must be at least one label, got none",
            "height must be a multiple of 16 pixels, got 30",
            f"latents must have the shape {shape}, got (1, 2, 8, 8)",
            "num_inference_steps must be at least 1, got 0",
            "zero_init_steps must be below 1 steps, got 1",
            "kind must be one of cfg, zero_star, internal, path_drop, got 'auto'",
            "callback_on_step_end_tensor_inputs must be latents, got prompt_embeds",
        ]
        saved = Generator.from_pretrained(tmp_path / name / "saved")
        assert saved.sampling == ours.sampling and same_weights(saved.transformer, ours.transformer)
        assert saved.config.routing == ours.config.routing
        images = ours(labels, seed=3, indices=[4, 9], output_type="pt")
        torch.testing.assert_close(other["images"] * 2 - 1, images, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            other["plain"], ours.latents(labels, 3, [4, 9], guidance_scale=1.0), rtol=1e-4, atol=1e-5
        )
        still = ours.latents(labels, 3, [4, 9], guidance_kind="zero_star", zero_init_steps=2)
        torch.testing.assert_close(other["still"], still, rtol=1e-4, atol=1e-5)
        height, width = (16 * side for side in ours.latent_shape[1:])
        assert other["drawn"].shape == (1, height, width, 3)
        assert other["pil"] == (width, height)


def test_exported_generator_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    ours = generator()
    ours.save_diffusers(tmp_path)
    back = Generator.from_pretrained(tmp_path)
    assert back.transformer.config == ours.transformer.config
    assert same_weights(back.transformer, ours.transformer)
    assert same_weights(back.tokenizer.autoencoder, ours.tokenizer.autoencoder)
    assert torch.equal(back.tokenizer.statistics.std, ours.tokenizer.statistics.std)
    assert back.sampling == ours.sampling
    assert back.class_names == ours.class_names
    assert back([1, 2]) == ours([1, 2])
    # The tokenizer can be read from the pipeline's folder.
    assert same_weights(Tokenizer.from_pretrained(tmp_path).autoencoder, ours.tokenizer.autoencoder)


def test_exported_configuration_is_read(tmp_path: Path) -> None:
    """Label dropout and positions do not show in the weights; without rotary embedding, the heads do not either."""
    ours = generator(latent_size=8, depth=1, heads=3, rope=False, label_dropout=0.0, positions="interpolate")
    ours.save_diffusers(tmp_path)
    assert Generator.from_pretrained(tmp_path).transformer.config == ours.transformer.config
    path = tmp_path / "transformer" / "config.json"
    path.write_text(path.read_text().replace('"depth": 1', '"depth": 2'))
    with pytest.raises(UserError, match="its weights have depth 1, its configuration says 2"):
        Generator.from_pretrained(tmp_path)


def test_exported_code_has_all_modules_of_the_network(tmp_path: Path) -> None:
    source = transformer_source()
    assert "import vavae" not in source
    assert "from vavae" not in source
    for line in (
        "class LightningDiT(RoutedNetwork):",
        "class LightningDiTModel(ModelMixin, ConfigMixin):",
        "def rotate(",
    ):
        assert source.count(line) == 1
    tops = [line.split()[0] for line in source.splitlines() if line[:1] == "_" and " = " in line]
    assert len(tops) == len(set(tops)), "two modules of the transformer share a private name"
    compile(source, "lightningdit.py", "exec")
    generator().save_diffusers(tmp_path)
    names = load_file(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(name.startswith("network.") for name in names)


def test_path_without_a_scheduler_is_refused(tmp_path: Path) -> None:
    ours = generator()
    ours.path = "vp"
    with pytest.raises(UserError, match="path must run from time 0 to 1 for the scheduler of diffusers, got vp"):
        ours.save_diffusers(tmp_path)
