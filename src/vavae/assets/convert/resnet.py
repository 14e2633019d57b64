"""Read ResNet-50 (ImageNet classes) from a TensorFlow.js layers model in Keras layout."""

import json
import re
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vavae.io.files import read_json_object

_KERAS_EPS = 1e-3
_TORCH_EPS = 1e-5
_DEPTHS = (3, 4, 6, 3)
_MEAN = (123.68, 116.779, 103.939)


def convert_resnet(files: list[Path], folder: Path) -> None:
    """Write a folder that `ResNetForImageClassification.from_pretrained` reads.

    `files` are `model.json`, the class names, and the shards of weights. Three differences are folded into the weights:
    Keras' convolutions have biases (subtracted from the running mean), its BatchNorm adds 1e-3 to the variance instead
    of 1e-5, and the network expects BGR (the first convolution's input channels are reversed). The result takes RGB
    from 0 to 255, minus the mean.
    """
    labels = read_json_object(files[1])
    arrays = _read_shards(read_json_object(files[0])["weightsManifest"][0]["weights"], files[2:])
    tensors: dict[str, Tensor] = {}
    for layer in {name.partition("/")[0] for name in arrays}:
        if layer.startswith(("res", "conv1")):
            tensors |= _convolution(arrays, layer)
    tensors["resnet.embedder.embedder.convolution.weight"] = (
        tensors["resnet.embedder.embedder.convolution.weight"].flip(1).contiguous()
    )
    tensors["classifier.1.weight"] = torch.from_numpy(arrays["fc1000/kernel"].T.copy())
    tensors["classifier.1.bias"] = torch.from_numpy(arrays["fc1000/bias"].copy())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(labels), indent=2) + "\n", encoding="utf-8")
    # For images in [0, 1], in the order R, G, B.
    statistics = {"image_mean": [mean / 255 for mean in _MEAN], "image_std": [1 / 255] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics) + "\n", encoding="utf-8")


def _read_shards(weights: list[dict], shards: list[Path]) -> dict[str, np.ndarray]:
    """Return the arrays of a weights manifest: float32, consecutive across the shards."""
    values = np.concatenate([np.fromfile(shard, dtype="<f4") for shard in shards])
    arrays = {}
    start = 0
    for entry in weights:
        size = int(np.prod(entry["shape"]))
        arrays[entry["name"]] = values[start : start + size].reshape(entry["shape"])
        start += size
    return arrays


def _convolution(arrays: dict[str, np.ndarray], layer: str) -> dict[str, Tensor]:
    """Return one convolution and the BatchNorm after it under transformers' names."""
    name = _target(layer)
    norm = "bn_conv1" if layer == "conv1" else layer.replace("res", "bn")
    mean = arrays[f"{norm}/moving_mean"].astype(np.float64) - arrays[f"{layer}/bias"]
    variance = arrays[f"{norm}/moving_variance"].astype(np.float64) + (_KERAS_EPS - _TORCH_EPS)
    converted = {
        f"{name}.convolution.weight": arrays[f"{layer}/kernel"].transpose(3, 2, 0, 1),
        f"{name}.normalization.weight": arrays[f"{norm}/gamma"],
        f"{name}.normalization.bias": arrays[f"{norm}/beta"],
        f"{name}.normalization.running_mean": mean,
        f"{name}.normalization.running_var": variance,
    }
    tensors = {key: torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for key, a in converted.items()}
    return tensors | {f"{name}.normalization.num_batches_tracked": torch.tensor(0)}


def _target(layer: str) -> str:
    """Return the new name of a layer: `res4b_branch2a` -> `resnet.encoder.stages.2.layers.1.layer.0`."""
    if layer == "conv1":
        return "resnet.embedder.embedder"
    match = re.fullmatch(r"res(\d)([a-f])_branch(1|2a|2b|2c)", layer)
    if match is None:
        raise ValueError(f"unexpected layer {layer}")
    block = f"resnet.encoder.stages.{int(match[1]) - 2}.layers.{ord(match[2]) - ord('a')}"
    return f"{block}.shortcut" if match[3] == "1" else f"{block}.layer.{'abc'.index(match[3][1])}"


def _config(labels: dict[str, str]) -> dict[str, object]:
    return {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "depths": list(_DEPTHS),
        "embedding_size": 64,
        "hidden_sizes": [256, 512, 1024, 2048],
        "layer_type": "bottleneck",
        # The stride of a stage is on its first 1x1 convolution, as in the first ResNet.
        "downsample_in_bottleneck": True,
        "hidden_act": "relu",
        "id2label": labels,
        "label2id": {label: int(number) for number, label in labels.items()},
    }
