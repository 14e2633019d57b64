"""The table of models with short names: published ones, and the one in the package.

`vavae models` prints it. `resolve` fetches a model by its short name, and a generator finds its tokenizer here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vavae.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from vavae.flow import PathName, Prediction


@dataclass(frozen=True, eq=False)
class KnownModel:
    """A model with a short name.

    Attributes:
        name: Name in `from_pretrained` and on the command line.
        kind: Its form: a tokenizer, or a generator.
        description: One line.
        latents: Factor and channels of the latents, such as "f16d32".
        parameters: Number of parameters, without those of a generator's tokenizer.
        license: License by the hub's identifier.
        hub_id: Repository on the hub; empty for a model in the package.
        file: Checkpoint in a repository of several models; empty if it has one model.
        folder: Folder of a model in the package.
        statistics: Where a tokenizer's latent statistics are, in words.
        statistics_file: Their file in the repository, where it is not next to the weights.
        teacher: Encoder of a representation autoencoder, whose file is a decoder; empty for others.
        tokenizer: Short name of a generator's tokenizer; empty if it is in the same folder.
        sampling: A generator's sampling defaults: values of a `SamplingConfig`.
        path: Path between noise and data in a generator's training.
        prediction: Output of a generator's network.
        published: Published numbers.
    """

    name: str
    kind: Literal["tokenizer", "generator"]
    description: str
    latents: str
    parameters: int
    license: str
    hub_id: str = ""
    file: str = ""
    folder: Path | None = None
    statistics: str = ""
    statistics_file: str = ""
    teacher: str = ""
    tokenizer: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    path: "PathName" = "linear"
    prediction: "Prediction" = "velocity"
    published: str = ""

    @property
    def megabytes(self) -> float:
        """Size of the weights in float32, in 10^6 bytes."""
        return self.parameters * 4e-6


_VAVAE = "vavae-imagenet256-f16d32-dinov2"
_VARIANTS = "hustvl/va-vae-imagenet256-experimental-variants"
_SD = "scaling factor 0.18215"
_STABLE = "Stable Diffusion's autoencoder"
NOT_PUBLISHED = "not published"  # of statistics: `vavae encode` measures them


def _lightningdit(epochs: int, scale: float, start: float, published: str) -> KnownModel:
    """Return a published LightningDiT-XL/1 with the sampling of its reproduction (configs/reproductions)."""
    name = f"lightningdit-xl-imagenet256-{epochs}ep"
    sampling = {"solver": "euler", "steps": 250, "shift": 0.3}
    guidance = {"guidance_scale": scale, "guidance_start": start, "guidance_stop": 1.0, "guidance_channels": 3}
    return KnownModel(
        name=name,
        kind="generator",
        description=f"XL/1, {epochs} epochs on ImageNet 256x256",
        latents="f16d32",
        parameters=675_256_736,
        license="mit",
        hub_id=f"hustvl/{name}",
        tokenizer=_VAVAE,
        sampling=sampling | guidance,
        published=published,
    )


def _variant(teacher: str, channels: int, parameters: int, published: str) -> KnownModel:
    """Return one of the paper's tokenizers of 50 epochs; `teacher` is empty without alignment."""
    aligned = f"VA-VAE aligned with {teacher}" if teacher else "VA-VAE's autoencoder without alignment"
    start, end = ("vavae", f"-{teacher.lower()}") if teacher else ("ldm", "")
    name = f"{start}-imagenet256-f16d{channels}{end}-50ep"
    return KnownModel(
        name=name,
        kind="tokenizer",
        description=f"{aligned}, 50 epochs",
        latents=f"f16d{channels}",
        parameters=parameters,
        license="mit",
        hub_id=_VARIANTS,
        file=f"{name}.ckpt",
        statistics=NOT_PUBLISHED,
        published=published,
    )


def _diffusers(
    name: str, description: str, shape: tuple[str, int], hub_id: str, license: str, statistics: str
) -> KnownModel:
    """Return an autoencoder in the form of diffusers; `shape` is its latents and parameters."""
    return KnownModel(name, "tokenizer", description, *shape, license, hub_id, statistics=statistics)


_COLLECTION = "nyu-visionx/RAE-collections"
# Sampling of RAE's transformers. Its guidance acts at all times, half of which the shift moves below our default.
RAE_SAMPLING = {"solver": "euler", "steps": 50, "shift": "dimension", "end": 0.999, "guidance_start": 0.0}


def _rae(ending: str, teacher: str, weights: str, statistics: str, published: str, size: int = 256) -> KnownModel:
    """Return one of RAE's ViT-XL decoders; `weights` and `statistics` are folders of the collection."""
    return KnownModel(
        name=f"rae-{ending}",
        kind="tokenizer",
        description=f"RAE's decoder of {teacher}, ImageNet {size}x{size} (arXiv 2510.11690)",
        latents="f16d768",
        parameters=415_352_704 if size == 256 else 416_237_440,
        license="mit",
        hub_id=_COLLECTION,
        file=f"decoders/{weights}/model.pt",
        statistics="stat.pt",
        statistics_file=f"stats/{statistics}/stat.pt",
        teacher=teacher,
        published=published,
    )


def _ditdh(ending: str, folder: str, parameters: int, tokenizer: str, published: str = "") -> KnownModel:
    """Return one of RAE's transformers with the published sampling; `folder` is one of the collection."""
    return KnownModel(
        name=f"rae-ditdh-{ending}",
        kind="generator",
        description="RAE's DiT^DH on latents of DINOv2-B",
        latents="f16d768",
        parameters=parameters,
        license="mit",
        hub_id=_COLLECTION,
        file=f"DiTs/Dinov2/wReg_base/{folder}/stage2_model.pt",
        tokenizer=tokenizer,
        sampling=RAE_SAMPLING,
        published=published,
    )


def _repa_e(name: str, description: str, shape: tuple[str, int], published: str = "") -> KnownModel:
    """Return one of REPA-E's tokenizers in its own form, whose statistics are in a file next to it."""
    return KnownModel(
        name=name,
        kind="tokenizer",
        description=description,
        latents=shape[0],
        parameters=shape[1],
        license="mit",
        hub_id=f"REPA-E/{name.removeprefix('repa-e-')}",
        statistics="NAME-latents-stats.pt",
        published=published,
    )


_SIT_E2E = KnownModel(
    name="sit-ldm-e2e-vavae",
    kind="generator",
    description="SiT-XL/1 with REPA on e2e-vavae, 800 epochs on ImageNet 256x256 (arXiv 2504.10483)",
    latents="f16d32",
    parameters=675_148_064,
    license="mit",
    hub_id="REPA-E/sit-ldm-e2e-vavae",
    file="checkpoints/4000000.pt",
    tokenizer="e2e-vavae",
    sampling={
        "solver": "euler_maruyama",
        "steps": 250,
        "shift": 0.0,
        "guidance_scale": 2.4,
        "guidance_start": 0.27,
    },
    published="FID 1.12 of balanced labels; 1.69 without guidance",
)
_TUNED = "tuned with a transformer (REPA-E, arXiv 2504.10483)"
_F16D32, _F8D4, _F8D16 = ("f16d32", 69_836_067), ("f8d4", 83_653_863), ("f8d16", 83_821_011)
_OWN = "in its configuration"  # of statistics
_KL_MODELS = (
    _diffusers("sd-vae-ft-ema", f"{_STABLE}, fine-tuned", _F8D4, "stabilityai/sd-vae-ft-ema", "mit", _SD),
    _diffusers(
        "sd-vae-ft-mse",
        f"{_STABLE}, fine-tuned with more weight on MSE",
        _F8D4,
        "stabilityai/sd-vae-ft-mse",
        "mit",
        _SD,
    ),
    _diffusers("sdxl-vae", "Stable Diffusion XL's autoencoder", _F8D4, "stabilityai/sdxl-vae", "mit", _OWN),
    _diffusers(
        "sd3.5-vae",
        "Stable Diffusion 3.5's autoencoder",
        _F8D16,
        "stabilityai/stable-diffusion-3.5-medium",
        "other",
        _OWN,
    ),
    _diffusers("flux1-vae", "FLUX.1's autoencoder", _F8D16, "black-forest-labs/FLUX.1-schnell", "apache-2.0", _OWN),
    KnownModel(
        name="flux2-vae",
        kind="tokenizer",
        description="FLUX.2's autoencoder; encode with the mean of the posterior",
        latents="f16d128",
        parameters=84_046_115,
        license="apache-2.0",
        hub_id="black-forest-labs/FLUX.2-klein-4B",
        statistics="among its weights",
    ),
    _repa_e("repa-e-vavae", "VA-VAE, as REPA-E starts from it", _F16D32),
    _repa_e("repa-e-invae", "IN-VAE, trained on ImageNet without alignment (REPA-E)", _F16D32),
    _repa_e("repa-e-sdvae", "SD-VAE, as REPA-E starts from it", _F8D4),
    _repa_e("e2e-vavae", f"VA-VAE {_TUNED}", _F16D32, "gFID 1.69 with SiT-XL, 800 epochs; 1.12 guided"),
    _repa_e("e2e-invae", f"IN-VAE {_TUNED}", _F16D32),
    _repa_e("e2e-sdvae", f"SD-VAE {_TUNED}", _F8D4),
    *(
        _diffusers(
            f"e2e-{kind}-hf", f"e2e-{kind} in the form of diffusers", shape, f"REPA-E/e2e-{kind}-hf", "mit", _OWN
        )
        for kind, shape in (("vavae", _F16D32), ("invae", _F16D32), ("sdvae", _F8D4))
    ),
    _diffusers("e2e-flux-vae", f"FLUX.1's autoencoder {_TUNED}", _F8D16, "REPA-E/e2e-flux-vae", "unknown", _OWN),
    _diffusers("e2e-sd3.5-vae", f"SD3.5's autoencoder {_TUNED}", _F8D16, "REPA-E/e2e-sd3.5-vae", "unknown", _OWN),
)


_WEAK = "with autoguidance {} by rae-ditdh-s-imagenet{}"
_RAE_MODELS = (
    _ditdh(
        "xl-imagenet256",
        "ImageNet256/DiTDH-XL",
        838_675_796,
        "rae-dinov2-base",
        f"FID 1.51; 1.13 {_WEAK.format(1.42, '256-14ep')}",
    ),
    _ditdh("s-imagenet256-14ep", "ImageNet256/DiTDH-S_ep14", 196_455_764, "rae-dinov2-base"),
    _ditdh(
        "xl-imagenet512-400ep",
        "ImageNet512/DiTDH-XL_ep400",
        839_560_532,
        "rae-dinov2-base-512",
        f"FID 1.13 {_WEAK.format(1.5, '512-20ep')}",
    ),
    _ditdh("s-imagenet512-20ep", "ImageNet512/DiTDH-S_ep20", 196_750_676, "rae-dinov2-base-512"),
    _rae(
        "dinov2-base",
        "dinov2-registers-base",
        "dinov2/wReg_base/ViTXL_n08",
        "dinov2/wReg_base/imagenet1k",
        "rFID 0.57",
    ),
    _rae(
        "dinov2-base-512",
        "dinov2-registers-base",
        "dinov2/wReg_base/ViTXL_n08_i512",
        "dinov2/wReg_base/imagenet1k_512",
        "",
        512,
    ),
    _rae(
        "siglip2-base",
        "siglip2-base",
        "siglip2/base_p16_i256/ViTXL_n08",
        "siglip2/base_p16_i256/ImageNet1k",
        "rFID 0.53",
    ),
    _rae("mae-base", "mae-base", "mae/base_p16/ViTXL_n08", "mae/base_p16/ImageNet1k", "rFID 0.16"),
)

# The licenses of hustvl's models are those of the published code; "unknown" are those that we could not read.
MODELS: tuple[KnownModel, ...] = (
    KnownModel(
        name="demo",
        kind="generator",
        description="CIFAR-10 at 32 px, with its tokenizer, for demonstration",
        latents="f4d16",
        parameters=7_406_392,
        license="mit",
        folder=Path(__file__).parents[1] / "assets" / "demo_model",
        statistics="in its folder",
        sampling={"solver": "euler", "steps": 50, "shift": 0.3, "guidance_scale": 2.5, "guidance_start": 0.1},
        published="FID 48.7 (5,000 samples)",
    ),
    _lightningdit(800, 6.7, 0.125, "FID 1.35; 2.17 without guidance"),
    _lightningdit(64, 10.0, 0.1, "FID 2.11; 5.14 without guidance"),
    _SIT_E2E,
    KnownModel(
        name=_VAVAE,
        kind="tokenizer",
        description="VA-VAE aligned with DINOv2, ImageNet 256x256 (arXiv 2501.01423)",
        latents="f16d32",
        parameters=69_836_067,
        license="mit",
        hub_id=f"hustvl/{_VAVAE}",
        statistics="latents_stats.pt",
    ),
    _variant("DINOv2", 32, 69_836_067, "rFID 0.28, PSNR 27.96"),
    _variant("DINOv2", 64, 70_293_955, "rFID 0.14, PSNR 30.71"),
    _variant("MAE", 32, 69_836_067, "rFID 0.28, PSNR 28.33"),
    _variant("MAE", 64, 70_293_955, "rFID 0.15, PSNR 31.03"),
    _variant("", 16, 69_610_963, "rFID 0.49, PSNR 26.10"),
    _variant("", 32, 69_836_067, "rFID 0.26, PSNR 28.59"),
    _variant("", 64, 70_293_955, "rFID 0.17, PSNR 31.03"),
    *_KL_MODELS,
    *_RAE_MODELS,
)


def find_model(name: str) -> KnownModel | None:
    """Return the model of a short name, or of a repository with one model; a revision may follow after an @."""
    text = name.partition("@")[0]
    if not text:  # the model in the package has no repository
        return None
    return next((model for model in MODELS if text == model.name or (text == model.hub_id and not model.file)), None)


def get_model(name: str) -> KnownModel:
    """Return the model of a name.

    Raises:
        UserError: The name is unknown; the message has the nearest one.
    """
    if (found := find_model(name)) is not None:
        return found
    raise UserError(f"no model has the short name {name}{near_model(name) or '; these have: ' + ', '.join(_names())}")


def near_model(name: str) -> str:
    """Return "; did you mean 'NEAREST'?" for a name that is similar to a model's, else an empty text."""
    return did_you_mean(name, _names())


def _names() -> Iterator[str]:
    return (model.name for model in MODELS)


GUIDANCE_KINDS = {"cfg": "classifier-free", "zero_star": "CFG-Zero*", "internal": "internal", "path_drop": "path-drop"}


def guidance_in_words(sampling: Mapping[str, Any], weak_model: str | None = None) -> str:
    """Return kind, scale, channels and times of guidance in words, here since this module is free of torch.

    Args:
        sampling: Values of a `SamplingConfig`; absent ones are its defaults.
        weak_model: Name of a weak model that guides.
    """
    if sampling.get("guidance_scale", 1.0) == 1:
        return "no guidance"
    kind = sampling.get("guidance_kind", "cfg")
    plain = "guidance" if weak_model is None else "autoguidance"
    name = plain if kind == "cfg" else f"{GUIDANCE_KINDS[kind]} guidance"
    channels = f" on {sampling['guidance_channels']} channels" if sampling.get("guidance_channels") else ""
    weak = "" if weak_model is None else f" against the weak model {weak_model}"
    start, stop = sampling.get("guidance_start", 0.125), sampling.get("guidance_stop", 1.0)
    return f"{name} {sampling['guidance_scale']:g}{channels}{weak} from time {start:g} to {stop:g}"
