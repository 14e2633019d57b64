"""Converters on small made-up sources: layouts, folding, refused pickles."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from vavae.assets.convert import inception, lpips, mobile_sam


class _Ran(Exception):
    pass


def _raise() -> None:
    raise _Ran


class _Harmful:
    def __reduce__(self) -> tuple:
        return _raise, ()


def test_lpips_refuses_code_in_the_pickle(tmp_path: Path) -> None:
    file = tmp_path / "weights.ckpt"
    file.write_bytes(pickle.dumps({"VGG16_0": _Harmful()}))
    with pytest.raises(pickle.UnpicklingError, match="is not a numpy array"):
        lpips.convert_lpips([file], tmp_path)


def test_lpips_layout_and_names(tmp_path: Path) -> None:
    """A Flax convolution (channels last) equals the converted one (channels first)."""
    random = np.random.default_rng(0)
    kernels = [random.normal(size=(3, 3, 3, 4)), random.normal(size=(3, 3, 4, 5))]
    backbone = {
        f"Conv_{i}": {"kernel": kernel.astype(np.float32), "bias": np.full(kernel.shape[-1], i, np.float32)}
        for i, kernel in enumerate(kernels)
    }
    heads = {f"NetLinLayer_{k}": {"Conv_0": {"kernel": np.full((1, 1, 7, 1), k, np.float32)}} for k in range(5)}
    file = tmp_path / "weights.ckpt"
    file.write_bytes(pickle.dumps({"VGG16_0": backbone, **heads}))
    lpips.convert_lpips([file], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert sorted(tensors) == sorted(
        [f"features.{i}.{part}" for i in range(2) for part in ("weight", "bias")]
        + [f"heads.{k}.weight" for k in range(5)]
    )
    image = random.normal(size=(5, 5, 3)).astype(np.float32)
    center = np.einsum("hwi,hwio->o", image[1:4, 1:4], kernels[0])
    channels_first = torch.from_numpy(image).permute(2, 0, 1)[None]
    found = F.conv2d(channels_first, tensors["features.0.weight"], tensors["features.0.bias"], padding=1)
    np.testing.assert_allclose(found[0, :, 2, 2].numpy(), center, rtol=1e-5, atol=1e-5)
    assert tensors["heads.3.weight"].shape == (1, 7, 1, 1)
    assert (tensors["heads.3.weight"] == 3).all()


def test_folded_batch_norm_computes_the_same() -> None:
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6).eval()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.1, 2.0)
        images = torch.randn(2, 4, 5, 5)
        weight, bias = mobile_sam._fold(convolution.weight, norm.state_dict())
        torch.testing.assert_close(F.conv2d(images, weight, bias), norm(convolution(images)), rtol=1e-4, atol=1e-5)


class _Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3))
        self.transposed = nn.Parameter(torch.randn(3, 2).t())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.t() + (x @ self.transposed.t())


class _Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(_Inner(), nn.ReLU(), nn.Linear(2, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_torchscript_archive_equals_torchs_reading(tmp_path: Path) -> None:
    module = torch.jit.script(_Outer())
    file = tmp_path / "module.pt"
    torch.jit.save(module, file)
    inception.convert_inception([file], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    expected = {name.removeprefix("net."): value for name, value in module.state_dict().items()}
    assert sorted(tensors) == sorted(expected)
    for name, value in expected.items():
        assert torch.equal(tensors[name], value)


def test_torchscript_archive_with_code_is_refused(tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("module/data.pkl", pickle.dumps({"net": _Harmful()}))
    file = tmp_path / "module.pt"
    file.write_bytes(content.getvalue())
    with pytest.raises(pickle.UnpicklingError, match="neither a scripted module nor a tensor"):
        inception.convert_inception([file], tmp_path)
