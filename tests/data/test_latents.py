"""Latents on disk: written by several processes, read, and the published layout."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vavae import rng
from vavae.data import LatentDataset, LatentSettings, LatentWriter, Shard, write_published_layout
from vavae.errors import UserError

SHAPE = (4, 3, 5)
SETTINGS = LatentSettings(image_size=32, seed=7, tokenizer="abc", source="def", class_names=("ant", "bee", "cat"))


def encode(indices: Tensor, stream: str = "plain") -> Tensor:
    """Return latents as an encoder would: a function of the image, with different statistics per channel."""
    noise = rng.normal(0, stream, indices, SHAPE)
    return noise * torch.tensor([1.0, 2.0, 3.0, 0.5]).view(-1, 1, 1) + torch.tensor([0.0, 5.0, -1.0, 2.0]).view(
        -1, 1, 1
    )


def batches(shard: Shard, batch_size: int = 7, flips: bool = True):
    for indices in shard.batches(batch_size):
        yield encode(indices), encode(indices, "flip") if flips else None, indices % 3


def write(folder: Path, total: int = 50, config: LatentSettings = SETTINGS, rank: int = 0, world: int = 1, **kw) -> int:
    """Write the missing shards and return their number."""
    writer = LatentWriter(folder, total, config, rank=rank, world=world, **({"shard_size": 12} | kw))
    missing = writer.missing()
    for shard in missing:
        writer.write(shard, batches(shard, flips=config.flips))
    return len(missing)


def finish(folder: Path, total: int = 50, config: LatentSettings = SETTINGS):
    return LatentWriter(folder, total, config, shard_size=12).finish()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "latents")
    finish(tmp_path / "latents")
    return tmp_path / "latents"


def test_latents_round_trip(folder):
    dataset = LatentDataset(folder)
    assert len(dataset) == 50 and dataset.shape == SHAPE and dataset.has_flips
    assert dataset.settings == SETTINGS and dataset.num_classes == 3 and dataset.class_names == ("ant", "bee", "cat")
    indices = torch.tensor([49, 0, 11, 12, 23, 24, 0, 31])
    mask = torch.tensor([False, True, False, True, False, True, False, True])
    latents, labels = dataset.get(indices, mask, normalize=False)
    expected = torch.where(mask.view(-1, 1, 1, 1), encode(indices, "flip"), encode(indices))
    assert latents.dtype == torch.float32 and torch.equal(latents, expected)
    assert torch.equal(labels, indices % 3) and torch.equal(dataset.labels, torch.arange(50) % 3)
    dataset.verify()


def test_shards_have_published_names_and_tensors(folder):
    assert [path.name for path in sorted(folder.glob("latents*.safetensors"))] == [
        f"latents_rank00_shard{number:03d}.safetensors" for number in range(5)
    ]
    with safe_open(folder / "latents_rank00_shard004.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["labels", "latents", "latents_flip"]
        metadata = file.metadata()
    assert metadata["total_size"] == "2" and metadata["dtype"] == "torch.float32" and metadata["shard"] == "4"
    assert json.loads(metadata["settings"])["tokenizer"] == "abc"


def test_statistics_cover_unflipped_latents(folder):
    everything = encode(torch.arange(50)).double()
    dataset = LatentDataset(folder)
    statistics = dataset.statistics
    assert statistics.count == 50
    values = everything.transpose(0, 1).flatten(1)
    torch.testing.assert_close(statistics.mean.double(), values.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(statistics.std.double(), values.std(1), rtol=1e-6, atol=0)
    normalized, _ = dataset.get(torch.arange(50))
    flat = normalized.double().transpose(0, 1).flatten(1)
    assert flat.mean(1).abs().max() < 1e-5 and (flat.std(1) - 1).abs().max() < 1e-5
    torch.testing.assert_close(statistics.denormalize(normalized).double(), everything, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("flips", [True, False])
def test_types_and_absent_flips(tmp_path, dtype, flips):
    config = LatentSettings(image_size=32, dtype=dtype, flips=flips)
    write(tmp_path, 20, config)
    finish(tmp_path, 20, config)
    dataset = LatentDataset(tmp_path)
    latents, _ = dataset.get(torch.arange(20), normalize=False)
    assert torch.equal(latents, encode(torch.arange(20)).to(config.torch_dtype).float())
    assert dataset.has_flips == flips
    mask = torch.arange(20) % 2 == 0
    if flips:
        assert not torch.equal(dataset.get(torch.arange(20), mask)[0], dataset.get(torch.arange(20))[0])
    else:
        dataset.get(torch.arange(20), torch.zeros(20, dtype=torch.bool))
        with pytest.raises(UserError, match="mirrored"):
            dataset.get(torch.arange(20), mask)


def test_finished_shards_are_kept(tmp_path):
    assert write(tmp_path) == 5
    assert write(tmp_path) == 0
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    damaged = tmp_path / "latents_rank00_shard002.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-30] ^= 1  # one flipped bit
    damaged.write_bytes(content)
    (tmp_path / "latents_rank00_shard004.safetensors").unlink()
    header = bytearray((tmp_path / "latents_rank00_shard001.safetensors").read_bytes())
    header[header.index(b'"sha256"') + 12] ^= 1
    (tmp_path / "latents_rank00_shard001.safetensors").write_bytes(header)
    writer = LatentWriter(tmp_path, 50, SETTINGS, shard_size=12)
    assert [shard.number for shard in writer.missing()] == [1, 2, 4]
    with pytest.raises(UserError, match="shard 4 of 5 is missing"):
        writer.finish()
    assert write(tmp_path) == 3
    finish(tmp_path)
    LatentDataset(tmp_path).verify()
    assert (tmp_path / "latents_rank00_shard000.safetensors").stat().st_mtime_ns == before[
        "latents_rank00_shard000.safetensors"
    ]


def test_shards_are_written_atomically(tmp_path):
    writer = LatentWriter(tmp_path, 50, SETTINGS, shard_size=12)

    def stops(shard: Shard):
        yield next(batches(shard))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.write(writer.shards[0], stops(writer.shards[0]))
    assert list(tmp_path.iterdir()) == []
    # Writing a shard removes drafts of it that a killed process left.
    left = tmp_path / ".latents_rank03_shard000.safetensors.999.tmp"
    left.write_bytes(b"half")
    assert write(tmp_path) == 5
    assert not left.exists()


def test_file_modes_follow_the_umask(folder):
    usual = folder / "usual"
    usual.touch()
    assert {path.stat().st_mode for path in folder.iterdir()} == {usual.stat().st_mode}


def test_latents_do_not_depend_on_process_count(tmp_path, folder):
    other = tmp_path / "by three"
    for rank in range(3):
        write(other, rank=rank, world=3)
    finish(other)
    assert {path.name for path in other.glob("*.safetensors")} == {
        "statistics.safetensors",
        *(f"latents_rank{number % 3:02d}_shard{number:03d}.safetensors" for number in range(5)),
    }
    one, three = LatentDataset(folder), LatentDataset(other)
    assert one.fingerprint() == three.fingerprint()
    assert (folder / "statistics.safetensors").read_bytes() == (other / "statistics.safetensors").read_bytes()
    assert torch.equal(one.get(torch.arange(50))[0], three.get(torch.arange(50))[0])
    # Another number of processes keeps the finished shards.
    (other / "latents_rank01_shard004.safetensors").unlink()
    assert [write(other, rank=rank, world=2) for rank in range(2)] == [1, 0]
    finish(other)
    assert LatentDataset(other).fingerprint() == one.fingerprint()


def _write_in_process(folder: Path, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    write(folder, rank=rank, world=world)


@pytest.mark.slow
def test_processes_write_at_once(tmp_path, folder):
    context = multiprocessing.get_context("fork")  # importing torch again takes seconds
    processes = [context.Process(target=_write_in_process, args=(tmp_path / "p", rank, 2)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    finish(tmp_path / "p")
    assert LatentDataset(tmp_path / "p").fingerprint() == LatentDataset(folder).fingerprint()


def encoded_in_batches_of(batch_size: int, folder: Path) -> tuple[str, bytes]:
    writer = LatentWriter(folder, 30, SETTINGS, shard_size=20)
    for shard in writer.missing():
        writer.write(shard, batches(shard, batch_size))
    writer.finish()
    return LatentDataset(folder).fingerprint(), (folder / "statistics.safetensors").read_bytes()


@pytest.mark.parametrize("batch_size", [1, 7, 19, 21, 60])
def test_latents_do_not_depend_on_batch_size(tmp_path, batch_size):
    found = encoded_in_batches_of(batch_size, tmp_path / "any")
    assert found == encoded_in_batches_of(20, tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 8}, "was made with seed 7, not 8: encode"),
        ({"tokenizer": "other"}, "was made with another tokenizer: encode"),
        ({"posterior": "mean"}, "posterior sample, not mean"),
        ({"class_names": ("ant",)}, "class_names"),
        ({"precision": "bf16"}, "precision fp32, not bf16"),
    ],
)
def test_other_settings_are_refused(folder, change, key):
    config = LatentSettings(**SETTINGS.__dict__ | change)
    with pytest.raises(UserError, match=key):
        LatentWriter(folder, 50, config, shard_size=12)
    with pytest.raises(UserError, match="number of images 50, not 60"):
        LatentWriter(folder, 60, SETTINGS, shard_size=12)
    with pytest.raises(UserError, match="shard_size 12, not 13"):
        LatentWriter(folder, 50, SETTINGS, shard_size=13)


def test_wrong_counts_and_nan_are_refused(tmp_path):
    writer = LatentWriter(tmp_path, 10, SETTINGS, shard_size=10)
    shard = writer.shards[0]
    with pytest.raises(ValueError, match="needs 10 latents, not 7"):
        writer.write(shard, [next(batches(shard))])
    with pytest.raises(ValueError, match="latents_flip by their settings"):
        writer.write(shard, batches(shard, flips=False))
    bad = [(z * float("nan"), f, y) for z, f, y in batches(shard)]
    with pytest.raises(UserError, match="images 0 to 9 are not finite"):
        writer.write(shard, bad)


def test_unfinished_folder_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match="not encoded to its end"):
        LatentDataset(tmp_path)
    with pytest.raises(UserError, match="no latent shards"):
        LatentDataset(tmp_path.parent)
    with pytest.raises(UserError, match="no such folder"):
        LatentDataset(tmp_path / "absent")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def spoil_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:8] + b"\xff" * 50 + path.read_bytes()[58:])


def lose_labels(path: Path) -> None:
    tensors = load_file(path)
    save_file({name: tensors[name].clone() for name in ("latents", "latents_flip")}, path)


@pytest.mark.parametrize("damage", [cut, cut_header, spoil_header, lose_labels, Path.unlink])
def test_damaged_shards_are_named(folder, damage):
    damage(folder / "latents_rank00_shard003.safetensors")
    with pytest.raises(UserError, match=r"latents_rank00_shard003\.safetensors"):
        LatentDataset(folder)


def test_damaged_index_and_statistics_are_named(folder):
    (folder / "statistics.safetensors").write_bytes(b"xx")
    with pytest.raises(UserError, match=r"statistics\.safetensors cannot be read"):
        _ = LatentDataset(folder).statistics
    (folder / "index.json").write_text('{"format": "vavae latents 2", "settings": {}}')
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        LatentDataset(folder)
    (folder / "index.json").write_text('{"format": "vavae latents 3"}')
    with pytest.raises(UserError, match=r"index\.json: format must be vavae latents 2, got vavae latents 3; encode"):
        LatentDataset(folder)


def test_resident_latents_equal_mapped_ones(folder):
    dataset = LatentDataset(folder)
    resident = dataset.to_device("cpu")
    indices = torch.tensor([3, 49, 12, 3])
    for mask in (None, torch.tensor([True, False, True, False])):
        for normalize in (True, False):
            for one, other in zip(
                dataset.get(indices, mask, normalize), resident.get(indices, mask, normalize), strict=True
            ):
                assert torch.equal(one, other)
    assert len(resident) == 50


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_latents_on_a_gpu(folder):
    dataset = LatentDataset(folder)
    resident = dataset.to_device("cuda")
    indices, mask = torch.tensor([3, 49, 12, 3]), torch.tensor([True, False, True, False])
    latents, labels = resident.get(indices, mask)
    assert latents.is_cuda and labels.is_cuda
    expected = dataset.get(indices, mask)
    torch.testing.assert_close(latents.cpu(), expected[0])
    assert torch.equal(labels.cpu(), expected[1])
    # Latents of a device are stored like latents of the CPU.
    writer = LatentWriter(folder / "from gpu", 20, SETTINGS, shard_size=20)
    for shard in writer.missing():
        writer.write(shard, [tuple(tensor.cuda() for tensor in batch) for batch in batches(shard)])
    writer.finish()
    stored, _ = LatentDataset(folder / "from gpu").get(torch.arange(20), normalize=False)
    assert torch.equal(stored, encode(torch.arange(20)))


def test_indices_out_of_range(folder):
    for index in (-1, 50):
        with pytest.raises(IndexError):
            LatentDataset(folder).get(torch.tensor([index]))


def published_folder(folder: Path) -> None:
    """Write the files of the published extractor: two ranks, strided images, float32, a pickle of statistics."""
    folder.mkdir()
    for rank in range(2):
        for number, indices in enumerate(torch.arange(rank, 50, 2).split(20)):
            tensors = {"latents": encode(indices), "latents_flip": encode(indices, "flip"), "labels": indices % 3}
            metadata = {"total_size": str(len(indices)), "dtype": "torch.float32", "device": "cpu"}
            save_file(tensors, folder / f"latents_rank{rank:02d}_shard{number:03d}.safetensors", metadata)
    torch.save(
        {
            "mean": torch.tensor([0.0, 5, -1, 2]).view(1, 4, 1, 1),
            "std": torch.tensor([1.0, 2, 3, 0.5]).view(1, 4, 1, 1),
        },
        folder / "latents_stats.pt",
    )


def test_published_folder_is_read(tmp_path):
    published_folder(tmp_path / "published")
    dataset = LatentDataset(tmp_path / "published")
    order = torch.cat((torch.arange(0, 50, 2), torch.arange(1, 50, 2)))
    mask = torch.arange(50) % 5 == 0
    latents, labels = dataset.get(torch.arange(50), mask)
    raw = torch.where(mask.view(-1, 1, 1, 1), encode(order, "flip"), encode(order))
    mean, std = torch.tensor([0.0, 5, -1, 2]).view(4, 1, 1), torch.tensor([1.0, 2, 3, 0.5]).view(4, 1, 1)
    torch.testing.assert_close(latents, (raw - mean) / std, rtol=1e-6, atol=1e-6)
    assert torch.equal(labels, order % 3) and dataset.settings is None and dataset.num_classes == 3
    dataset.verify()  # does nothing without an index


def test_published_folder_without_statistics(tmp_path):
    published_folder(tmp_path / "published")
    (tmp_path / "published" / "latents_stats.pt").unlink()
    statistics = LatentDataset(tmp_path / "published").statistics
    values = encode(torch.arange(50)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(statistics.mean, values.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(statistics.std, values.std(1), rtol=1e-5, atol=0)


class _Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


def test_statistics_are_unpickled_safely(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published_folder(tmp_path / "published")
    torch.save({"mean": _Evil(), "std": _Evil()}, tmp_path / "published" / "latents_stats.pt")
    with pytest.raises(UserError, match=r"latents_stats\.pt cannot be read"):
        _ = LatentDataset(tmp_path / "published").statistics
    assert not (tmp_path / "evil").exists()


def test_published_layout_is_written(folder, tmp_path):
    write_published_layout(LatentDataset(folder), tmp_path / "out", shard_size=20)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"latents_rank00_shard{number:03d}.safetensors" for number in range(3)),
        "latents_stats.pt",
    ]
    with safe_open(tmp_path / "out" / "latents_rank00_shard002.safetensors", "pt") as file:
        assert file.metadata() == {"total_size": "10", "dtype": "torch.float32", "device": "cpu"}
        assert torch.equal(file.get_tensor("latents_flip"), encode(torch.arange(40, 50), "flip"))
    stored = torch.load(tmp_path / "out" / "latents_stats.pt", weights_only=True)
    assert stored["mean"].shape == (1, 4, 1, 1)
    ours, published = LatentDataset(folder), LatentDataset(tmp_path / "out")
    assert torch.equal(ours.get(torch.arange(50))[0], published.get(torch.arange(50))[0])
    with pytest.raises(UserError, match="not empty"):
        write_published_layout(ours, tmp_path / "out")


def test_gather_opens_no_file(tmp_path):
    """Shards are mapped once; `benchmarks/paired.py` measures the gain."""
    config = LatentSettings(image_size=256, flips=False)
    writer = LatentWriter(tmp_path, 2000, config, shard_size=500)
    for shard in writer.missing():
        writer.write(shard, [(torch.randn(shard.count, 8, 8, 8), None, torch.zeros(shard.count))])
    writer.finish()
    indices = torch.randint(0, 2000, (500,))
    stored = {path.name: load_file(path)["latents"] for path in tmp_path.glob("latents_rank*.safetensors")}
    expected = [
        stored[f"latents_rank00_shard{index // 500:03d}.safetensors"][index % 500] for index in indices.tolist()
    ]

    dataset = LatentDataset(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()  # mapped tensors stay readable; opening a file would fail
    assert torch.equal(dataset.get(indices, normalize=False)[0], torch.stack(expected))


def test_index_is_plain_json(folder):
    index = json.loads((folder / "index.json").read_text())
    assert index["settings"]["posterior"] == "sample"
    assert [shard["first"] for shard in index["shards"]] == [0, 12, 24, 36, 48]
    assert all(len(shard["sha256"]) == 64 for shard in index["shards"])


@pytest.mark.parametrize(("size", "stored"), [(32, 32), ((24, 40), [24, 40])])
def test_index_has_the_image_size(size, stored, tmp_path):
    config = replace(SETTINGS, image_size=size)
    write(tmp_path, config=config)
    finish(tmp_path, config=config)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["settings"]["image_size"] == stored
    assert LatentDataset(tmp_path).settings == config
    assert write(tmp_path, config=config) == 0
    with pytest.raises(UserError, match=r"was made with data\.size .*, not 16"):
        write(tmp_path, config=replace(SETTINGS, image_size=16))
    index["settings"]["image_size"] = [24]
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(
        UserError, match=r"index\.json is damaged: image_size must be a number or \[height, width\], got \[24\]"
    ):
        LatentDataset(tmp_path)
