"""Choice of device; TF32 is restored afterwards."""

import signal
import threading

import pytest
import torch

from vavae.commands import doctor
from vavae.config import parse_command_line
from vavae.device import (
    autocast,
    image_memory_format,
    resolve_device,
    resolve_precision,
    without_tf32,
    without_values,
)
from vavae.errors import UserError
from vavae.metrics.inception import full_precision
from vavae.stages import sample, train_dit, train_tokenizer
from vavae.training.parallel import processes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")  # the switches are there without a GPU too
PRODUCTS, CONVOLUTIONS = torch.backends.cuda.matmul, torch.backends.cudnn.conv


def switches() -> tuple[str, str]:
    return PRODUCTS.fp32_precision, CONVOLUTIONS.fp32_precision


@pytest.fixture(params=[("none", "tf32"), ("ieee", "ieee"), ("tf32", "tf32"), ("tf32", "ieee")], ids=str)
def before(request):
    """Set the switches, and restore them afterwards."""
    former = switches()
    PRODUCTS.allow_tf32 = request.param[0] == "tf32"
    PRODUCTS.fp32_precision, CONVOLUTIONS.fp32_precision = request.param
    yield request.param
    PRODUCTS.allow_tf32 = False
    PRODUCTS.fp32_precision, CONVOLUTIONS.fp32_precision = former


def test_tf32_is_on_inside_only(before):
    with autocast("tf32", CUDA):
        assert switches() == ("tf32", "tf32")
        assert not torch.is_autocast_enabled("cuda")
        # Compilers read the older switches, and torch raises if these disagree with the newer.
        assert PRODUCTS.allow_tf32 and torch.get_float32_matmul_precision() == "high"
        with autocast("tf32", CUDA):
            assert switches() == ("tf32", "tf32")
        assert switches() == ("tf32", "tf32")
    assert switches() == before
    assert PRODUCTS.allow_tf32 == (before[0] == "tf32")


def test_tf32_is_off_after_an_error(before):
    with pytest.raises(ZeroDivisionError), autocast("tf32", CUDA):
        raise ZeroDivisionError
    assert switches() == before


def test_features_stay_strict_inside(before):
    with autocast("tf32", CUDA):
        with full_precision(CPU):
            assert CONVOLUTIONS.fp32_precision == "ieee"
        assert switches() == ("tf32", "tf32")
    assert switches() == before


@pytest.mark.parametrize(("precision", "device"), [("tf32", CPU), ("fp32", CPU), ("fp32", CUDA)])
def test_tf32_is_not_switched_elsewhere(precision, device):
    former = switches()
    with autocast(precision, device):
        assert switches() == former


def test_threads_without_tf32_wait():
    inside, leave, seen = threading.Event(), threading.Event(), []

    def drawing():
        with autocast("tf32", CUDA):
            inside.set()
            leave.wait(10)

    def features():
        with without_tf32():
            seen.append(switches())

    former = switches()
    threads = [threading.Thread(target=drawing), threading.Thread(target=features)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    threads[1].join(0.2)
    assert not seen
    leave.set()
    for thread in threads:
        thread.join(10)
    assert seen == [former]


def test_tf32_is_fp32_on_cpus():
    assert resolve_precision("tf32", CPU) == "tf32"
    assert image_memory_format("tf32", CPU) == image_memory_format("fp32", CPU)


@pytest.mark.parametrize(
    ("config", "option"),
    [
        (sample.Config, "--precision=tf16"),
        (train_dit.Config, "--training.precision=tf32"),  # its gradients would be computed outside the switch
        (train_tokenizer.Config, "--training.precision=tf32"),
    ],
)
def test_unknown_precisions_are_refused(config, option):
    with pytest.raises(UserError, match="precision"):
        parse_command_line(config, [option], prog="vavae")


def test_other_accelerators_are_used_only_if_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("mps"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    assert resolve_device("auto") == CPU
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.13.0"))
    assert resolve_device("mps").type == "mps"
    for device in ("xpu", "mps:1"):
        with pytest.raises(UserError, match=rf"^device must be auto, cpu or mps, got '{device}', which is not on"):
            resolve_device(device)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="several processes train on CPUs or NVIDIA GPUs, not on mps"), processes("mps"):
        pytest.fail("the processes joined")
    assert signal.set_wakeup_fd(-1) == -1  # what ends a process that waits was not left behind
    assert dict(doctor.findings(doctor.Config("auto")))["device"].endswith("; --device mps takes the GPU")
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.12.1"))
    with pytest.raises(UserError, match=r"device: 'mps' needs torch 2.13 or newer, got torch 2.12.1"):
        resolve_device("mps")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tf32_rounds_products_and_convolutions_inside_only():
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 512, 512, dtype=torch.double, generator=generator)
    images = torch.randn(2, 64, 32, 32, dtype=torch.double, generator=generator)
    kernels = torch.randn(64, 64, 3, 3, dtype=torch.double, generator=generator)

    def errors() -> list[float]:
        """Return the largest errors of a product and of a convolution, relative to the size of the values."""
        exact = a @ b, torch.nn.functional.conv2d(images, kernels)
        x, y, i, k = (tensor.float().cuda() for tensor in (a, b, images, kernels))
        found = x @ y, torch.nn.functional.conv2d(i, k)
        return [float((f.cpu() - e).abs().max() / e.std()) for f, e in zip(found, exact, strict=True)]

    with full_precision(CUDA):
        strict = errors()
        with autocast("tf32", CUDA):
            coarse = errors()
            with full_precision(CUDA):
                strict_convolution = errors()[1]
        after = errors()
    assert max(*strict, *after, strict_convolution) < 5e-5
    assert min(coarse) > 2e-4 and max(coarse) < 2e-2


def test_networks_without_values() -> None:
    with without_values():
        layers = [torch.nn.Embedding(3, 2), torch.nn.Conv2d(1, 2, 3), torch.nn.LayerNorm(2)]
        torch.nn.init.normal_(layers[0].weight, std=0.02)
        buffer = torch.arange(3)
    assert all(parameter.is_meta for layer in layers for parameter in layer.parameters()) and buffer.is_meta
    assert layers[0].weight.shape == (3, 2)
    torch.nn.init.normal_(torch.empty(2))
    assert not torch.arange(3).is_meta
