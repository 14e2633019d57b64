"""Damaged and malicious files are refused in one line that names them, and their code does not run."""

import argparse
import functools
import io
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import SMALL_F16, VA_VAE, autoencoder, golden_dit, lightning_checkpoint, weights
from safetensors.torch import save_file

from vavae.checkpoints import reading
from vavae.checkpoints.loading import load_autoencoder, load_transformer
from vavae.checkpoints.reading import read_checkpoint
from vavae.checkpoints.statistics import read_statistics
from vavae.cli import run
from vavae.errors import UserError


def refusal(path: Path, load: Callable[[Path], Any] = load_autoencoder) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 400 + len(str(path))
    assert str(path) in message
    return message


class Bomb:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("where", ["alone", "next to weights", "among weights", "statistics"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_pickle_does_not_run(where: str, legacy: bool, tmp_path: Path) -> None:
    bomb, state = Bomb(tmp_path / "ran"), weights(SMALL_F16)
    content = {
        "alone": bomb,
        "next to weights": {"state_dict": state, "callbacks": bomb},
        "among weights": {**state, "encoder.conv_in.bias": bomb},
        "statistics": {"mean": torch.zeros(8), "std": torch.ones(8), "note": bomb},
    }[where]
    path = tmp_path / "evil.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    for load in (load_autoencoder, load_transformer, read_statistics):
        assert "refused: its pickle calls posix.system, which could run code" in refusal(path, load)
    assert not (tmp_path / "ran").exists()


def test_code_in_a_plain_pickle_does_not_run(tmp_path: Path) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / "evil.pt"
        path.write_bytes(pickle.dumps({"state_dict": Bomb(tmp_path / "ran")}, protocol=protocol))
        assert "posix.system" in refusal(path)
    # A pickle without a protocol header is not a checkpoint.
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol=0))
    assert "not a checkpoint" in refusal(path)
    assert not (tmp_path / "ran").exists()


def test_code_in_functions_of_torch_does_not_run(tmp_path: Path) -> None:
    class Indirect:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch.hub.load, ("owner/nothing", "model")

    torch.save({"state_dict": Indirect()}, tmp_path / "evil.pt")
    assert "torch.hub.load" in refusal(tmp_path / "evil.pt")


@pytest.mark.parametrize("call", [(eval, "0"), (getattr, os, "getcwd"), (functools.partial, os.getcwd), (os.getcwd,)])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_calls_of_any_function_are_refused(call: tuple[Any, ...], legacy: bool, tmp_path: Path) -> None:
    class Call:
        def __reduce__(self) -> tuple[Any, ...]:
            return call[0], tuple(each for each in call[1:] if each is not os)

    torch.save({"state_dict": {}, "a": Call()}, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    assert call[0].__name__ in refusal(tmp_path / "a.pt")


def test_functions_of_torch_stay_unchanged(tmp_path: Path) -> None:
    """A pickle could set attributes of the functions that it names."""
    buffer = io.BytesIO()
    pickle.Pickler(buffer, 2).dump(torch._utils._rebuild_tensor_v2)
    named = buffer.getvalue()[:-1]
    state = pickle.dumps((None, {"__defaults__": (1,)}), protocol=2)[2:-1]
    path = tmp_path / "a.pt"
    torch.save({"state_dict": {}}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            archive.writestr(name, named + state + b"b." if name.endswith("/data.pkl") else content)
    before = torch._utils._rebuild_tensor_v2.__defaults__
    assert "holds a function" in refusal(path)
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


def test_namespace_of_options_is_accepted(tmp_path: Path) -> None:
    state = weights(SMALL_F16)
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-4)}, tmp_path / "a.pt")
    assert load_autoencoder(tmp_path / "a.pt").report.tensors == len(state)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_truncated_file_is_named(suffix: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"cut{suffix}"
    state = weights(SMALL_F16)
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    message = refusal(path)
    assert "damaged or cut off" in message or (share == 0.0 and "not a checkpoint" in message)


def test_truncated_legacy_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.ckpt"
    model, projection = autoencoder(SMALL_F16)
    torch.save(lightning_checkpoint(model, projection), path, _use_new_zipfile_serialization=False)
    assert load_autoencoder(path).report.tensors == len(model.state_dict())
    content = path.read_bytes()
    for share in (0.001, 0.5, 0.99):
        path.write_bytes(content[: int(len(content) * share)])
        refusal(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, tmp_path: Path) -> None:
    model, _ = autoencoder(SMALL_F16)
    state = model.state_dict()
    state["decoder.mid.block_1.conv2.weight"][3, 4, 1, 1] = value
    torch.save(state, tmp_path / "a.pt")
    assert "decoder.mid.block_1.conv2.weight holds NaN or infinity" in refusal(tmp_path / "a.pt")
    dit = golden_dit()[0].state_dict()
    dit["blocks.1.norm2.weight"][0] = value
    save_file(dit, tmp_path / "b.safetensors")
    assert "blocks.1.norm2.weight holds NaN or infinity" in refusal(tmp_path / "b.safetensors", load_transformer)
    torch.save({"mean": torch.full((8,), value), "std": torch.ones(8)}, tmp_path / "s.pt")
    assert "must have finite means" in refusal(tmp_path / "s.pt", read_statistics)


def test_wrong_shapes_and_types_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    state = weights(VA_VAE)
    for name, value, message in [
        (
            "decoder.up.1.block.0.conv1.weight",
            torch.zeros(32, 64, 1, 1),
            "has shape (32, 64, 1, 1), not (32, 64, 3, 3)",
        ),
        ("encoder.norm_out.weight", torch.ones(64), "has shape (64,), not (128,)"),
        ("encoder.conv_in.weight", torch.ones(32), "has shape (32,), not 4 dimensions"),
        ("encoder.down.2.block.0.conv1.weight", torch.ones(48, 32, 3, 3), "level widths"),
        ("decoder.conv_in.weight", torch.zeros(0, 0, 3, 3), "has shape (0, 0, 3, 3)"),
        ("quant_conv.bias", torch.zeros(16, dtype=torch.int64), "quant_conv.bias holds int64, not weights"),
        ("quant_conv.bias", torch.zeros(16, dtype=torch.float64), "quant_conv.bias is float64"),
        ("quant_conv.bias", "text", "quant_conv.bias is not a plain tensor but a str"),
        ("quant_conv.bias", torch.zeros(16).to_sparse(), "quant_conv.bias is not a plain tensor"),
    ]:
        torch.save({**state, name: value}, path)
        assert message in refusal(path)
    for content, message in [([1, 2], "holds a list"), (torch.zeros(3), "holds a Tensor"), ({}, "begin with nothing")]:
        torch.save(content, path)
        assert message in refusal(path)
    dit = golden_dit()[0].state_dict()
    torch.save({**dit, "feat_rope.freqs_cos": torch.zeros(16, 7)}, path)
    assert "feat_rope.freqs_cos has shape (16, 7), which does not fit width 64" in refusal(path, load_transformer)


def test_zip_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    torch.save({"encoder.conv_in.weight": torch.zeros(3)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, bytes(5_000_000) if name.endswith("/data/0") else content)
    assert path.stat().st_size < 1_000_000
    assert "refused: it is compressed" in refusal(path)


def test_archive_with_overlapping_parts_is_refused(tmp_path: Path) -> None:
    """One block of bytes under many names: a bomb without compression."""
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("archive/data/0", bytes(100_000))
        for number in range(1, 100):
            entry = zipfile.ZipInfo(f"archive/data/{number}")
            entry.header_offset = archive.infolist()[1].header_offset
            entry.file_size = entry.compress_size = 100_000
            entry.CRC = 0
            archive.filelist.append(entry)
    assert "claim to hold" in refusal(path)


def test_tensor_larger_than_its_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    state = weights(SMALL_F16)
    state["quant_conv.weight"] = torch.zeros(1).expand(2**40)
    torch.save(state, path)
    assert "refused: quant_conv.weight claims 1,099,511,627,776 numbers, the file holds 1" in refusal(path)


def test_bytes_that_are_not_there_take_no_memory(tmp_path: Path) -> None:
    """Python's own reader takes the memory for the stated bytes before it reads."""
    path = tmp_path / "bomb.pt"
    stated = b"\x80\x05}\x8c\x01b" + pickle.BYTEARRAY8 + (2**28).to_bytes(8, "little") + b"abs."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", stated)
        archive.writestr("archive/version", "3")
    tracemalloc.start()
    assert "damaged or cut off (EOFError)" in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_huge_structure_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_MOST_STRUCTURE", 2**20)
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"N0" * 2**20 + b"N.")
    assert "bytes of structure without numbers" in refusal(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for content, message in [
        (b"", "not a checkpoint"),
        (b"<!doctype html><html>not found</html>", "not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs"),
        (b"\x80\x02garbage", "damaged"),
        (b"PK\x03\x04garbage", "damaged"),
    ]:
        path.write_bytes(content)
        assert message in refusal(path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    path.write_bytes(buffer.getvalue())
    assert "not one that torch.save wrote" in refusal(path)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)  # type: ignore[no-untyped-call]
    assert "not one that torch.save wrote" in refusal(path)
    assert "cannot be read" in refusal(tmp_path / "absent.pt", read_checkpoint)


def test_safetensors_header_with_wrong_sizes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = b'{"encoder.conv_in.weight":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    assert "damaged or cut off" in refusal(path)
    path.write_bytes((2**62).to_bytes(8, "little") + header)
    assert "damaged or cut off" in refusal(path)


def test_command_refuses_code_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": Bomb(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    assert run(["convert", str(tmp_path / "evil.ckpt"), str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"vavae: {tmp_path / 'evil.ckpt'}: refused")
    assert len(printed.err.splitlines()) == 1
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()
