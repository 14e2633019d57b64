"""FID Inception: published forms of its weights, spatial features, logits, and resizes."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from plain_inception import plain_forward
from safetensors.torch import save_file

from vavae import assets
from vavae.data import DemoImages, load_pixels
from vavae.errors import UserError
from vavae.metrics import FIDInception, load_feature_network
from vavae.metrics.inception_resize import clean_input, pytorch_fid_input, tensorflow_input
from vavae.metrics.inception_weights import read_weights

PIXELS = load_pixels(DemoImages("test"), range(2), 32)


@pytest.mark.slow
def test_pytorch_fid_file_against_its_own_network(published, tmp_path):
    """`plain_forward` is that network, written in the names of the file."""
    state = dict(published)
    torch.save(state, tmp_path / "pt_inception.pth")
    network = FIDInception.from_file(tmp_path / "pt_inception.pth", "pytorch-fid")
    images = 2 * F.interpolate(PIXELS.permute(0, 3, 1, 2) / 255.0, (299, 299), mode="bilinear") - 1
    with torch.inference_mode():
        expected = plain_forward(state, images)
        found = network.outputs(PIXELS)
    assert float(expected["pool"].std()) > 0.01
    torch.testing.assert_close(found["pool"], expected["pool"], rtol=0, atol=3e-5)
    torch.testing.assert_close(found["logits"], expected["logits"], rtol=0, atol=3e-5)
    # TensorFlow's layout: position by position, channels last.
    grid = found["spatial"].view(2, 17, 17, 7).permute(0, 3, 1, 2)
    torch.testing.assert_close(grid, expected["spatial"], rtol=0, atol=3e-5)
    assert found["spatial"].shape == (2, 2023) and float(expected["spatial"].std()) > 0.01


def test_wrong_weights_files_are_refused(published, tmp_path):
    state = {name: tensor.flatten()[:1].clone() for name, tensor in published.items()}  # only names matter
    torch.save(state | {"AuxLogits.fc.weight": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(UserError, match=r"AuxLogits\.fc\.weight is unknown"):
        read_weights(tmp_path / "more.pth")
    del state["Mixed_6c.branch7x7dbl_4.bn.bias"]
    torch.save(state, tmp_path / "lacking.pth")
    with pytest.raises(UserError, match=r"Mixed_6c\.branch7x7dbl_4\.bn\.bias is missing"):
        read_weights(tmp_path / "lacking.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match=r"text\.pth: not readable"):
        read_weights(tmp_path / "text.pth")
    with pytest.raises(UserError, match=r"no such file.*absent\.pth"):
        read_weights(tmp_path / "absent.pth")
    torch.save({"a": 3}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not a state dict"):
        read_weights(tmp_path / "other.pth")


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_code_in_weights_file_does_not_run(tmp_path):
    torch.save({"fc.bias": Bomb(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth: not readable as FID Inception weights"):
        read_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_logits_come_with_their_weights(fid_weights, real_network):
    network = FIDInception.from_weights({**fid_weights, "output.weight": torch.ones(1008, 2048)})
    found = network.outputs(PIXELS[:1])
    assert set(found) == {"pool", "spatial", "logits"}
    torch.testing.assert_close(found["logits"], found["pool"].sum(1, keepdim=True).expand(1, 1008), rtol=1e-4, atol=0)
    plain = real_network.outputs(PIXELS[:1])
    assert set(plain) == {"pool", "spatial"} and torch.equal(plain["pool"], found["pool"])


def test_torchscript_archive_is_read_without_running_it(tmp_path):
    layer = torch.nn.Linear(3, 2)
    torch.jit.save(torch.jit.script(torch.nn.Sequential(layer)), tmp_path / "archive.pt")
    found = read_weights(tmp_path / "archive.pt")
    assert set(found) == {"0.weight", "0.bias"} and torch.equal(found["0.weight"], layer.weight)


@pytest.mark.slow
def test_each_network_has_its_resize(rule_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "load", lambda name: rule_weights)
    save_file(rule_weights, tmp_path / "weights.safetensors")
    names = ("inception", "inception-pytorch-fid", "inception-clean")
    networks = [load_feature_network(name) for name in names]
    assert [network.name for network in networks] == list(names)
    assert len({network.fingerprint for network in networks}) == 3
    assert networks[0].parts == ("pool", "spatial")
    features = [network(PIXELS[:1]) for network in networks]
    assert (features[0] - features[1]).abs().max() > 1e-3 and (features[0] - features[2]).abs().max() > 1e-3
    from_file = load_feature_network(f"inception:{tmp_path / 'weights.safetensors'}")
    assert from_file.name == f"inception:{tmp_path / 'weights.safetensors'}" and from_file.kind == "inception"
    assert from_file.fingerprint == networks[0].fingerprint
    assert torch.equal(from_file(PIXELS[:1]), features[0])


def test_scaling_of_each_resize():
    """A flat image keeps its value: (x - 128) / 128 or 2 x / 255 - 1."""
    flat = torch.full((1, 40, 30, 3), 200, dtype=torch.uint8)
    for resize, value in ((tensorflow_input, 72 / 128), (clean_input, 72 / 128), (pytorch_fid_input, 400 / 255 - 1)):
        found = resize(flat)
        assert found.shape == (1, 3, 299, 299)
        torch.testing.assert_close(found, torch.full_like(found, value), rtol=0, atol=1e-5)


def test_resizes_of_a_ramp():
    """Pixel i of 299 reads position i W / 299, or (i + ½) W / 299 - ½ between pixel centers."""
    ramp = (torch.arange(64, dtype=torch.uint8) * 3).view(1, 1, 64, 1).expand(1, 8, 64, 3)
    i = torch.arange(299.0)
    row = tensorflow_input(ramp)[0, 0, 0] * 128 + 128
    torch.testing.assert_close(row, 3 * (i * 64 / 299).clamp(max=63), rtol=0, atol=1e-3)
    centers = ((i + 0.5) * 64 / 299 - 0.5).clamp(0, 63)
    torch.testing.assert_close((pytorch_fid_input(ramp)[0, 0, 0] + 1) * 127.5, 3 * centers, rtol=0, atol=1e-3)
    inner = slice(20, 279)  # a bicubic overshoots at borders
    cubic = clean_input(ramp)[0, 0, 0] * 128 + 128
    torch.testing.assert_close(cubic[inner], 3 * centers[inner], rtol=0, atol=1e-2)


def test_clean_resize_clips_overshoots():
    """Values stay within 0 and 255, as in clean-fid; otherwise the resize is Pillow's bicubic."""
    blocks = (torch.arange(64) // 16 % 2 * 255).to(torch.uint8).view(1, 64, 1, 1).expand(1, 64, 64, 3)
    found = clean_input(blocks)[0, 0] * 128 + 128
    plane = Image.fromarray(blocks[0, ..., 0].float().numpy())
    expected = torch.from_numpy(np.array(plane.resize((299, 299), Image.Resampling.BICUBIC)))
    assert expected.min() < -10 and expected.max() > 265
    torch.testing.assert_close(found, expected.clamp(0, 255), rtol=0, atol=1e-4)


def test_only_clean_resize_is_antialiased():
    """An anti-aliased checkerboard of single pixels, twice as wide as the target, is gray."""
    board = ((torch.arange(598)[:, None] + torch.arange(598)) % 2 * 255).to(torch.uint8)
    pixels = board[None, ..., None].expand(1, 598, 598, 3)
    assert float(clean_input(pixels).std()) < 0.05
    assert float(tensorflow_input(pixels).std()) > 0.9 or float(tensorflow_input(pixels).abs().min()) > 0.9
    assert np.isfinite(float(pytorch_fid_input(pixels).mean()))
