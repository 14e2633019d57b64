"""DINOv2 weights from an ONNX export of a transformers model."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from vavae.assets.convert.onnx_graph import read_onnx

_PREFIX = "backbone."
_LINEAR = re.compile(r"^/backbone/(encoder/layer\.\d+/.*)/MatMul$")


def convert_dinov2(files: list[Path], folder: Path) -> None:
    """Write a folder that `Dinov2Model.from_pretrained` reads: `config.json` and `model.safetensors`.

    The names are the ones of published DINOv2 checkpoints, which every version of transformers reads. The saliency
    decoder is left out. The exporter kept the names of all parameters but the weights of linear layers and the position
    embeddings, which are found by the nodes that use them.
    """
    arrays, nodes = read_onnx(files[0])
    tensors = {
        name.removeprefix(_PREFIX): torch.from_numpy(array.copy())
        for name, array in arrays.items()
        if name.startswith(_PREFIX)
    }
    for node in nodes:
        linear = _LINEAR.match(node.name)
        if linear and node.kind == "MatMul" and node.inputs[1] in arrays:
            weight = torch.from_numpy(arrays[node.inputs[1]].copy()).T.contiguous()
            tensors[linear[1].replace("/", ".") + ".weight"] = weight
    positions = {node.name: arrays[node.inputs[0]] for node in nodes if node.inputs and node.inputs[0] in arrays}
    class_position = positions["/backbone/embeddings/Concat_6"]
    grid_positions = positions["/backbone/embeddings/Reshape_1"]
    both = [torch.from_numpy(part.copy()) for part in (class_position, grid_positions)]
    tensors["embeddings.position_embeddings"] = torch.cat(both, dim=1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(tensors), indent=2) + "\n", encoding="utf-8")


def _config(tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    """Return the model's configuration, read from the shapes as far as they show it."""
    width, _, patch, _ = tensors["embeddings.patch_embeddings.projection.weight"].shape
    side = round((tensors["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    layers = sum(name.endswith("norm1.weight") for name in tensors)
    return {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "mlp_ratio": tensors["encoder.layer.0.mlp.fc1.bias"].shape[0] // width,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "image_size": side * patch,
        "patch_size": patch,
        "qkv_bias": True,
        "layerscale_value": 1.0,
        "use_swiglu_ffn": False,
        "use_mask_token": False,
    }
