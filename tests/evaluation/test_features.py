"""Stored features: order, resumption, damaged files, the thread that loads images."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluate_models import color_network
from machine_faults import limited
from safetensors.torch import load_file, save_file

from vavae.data import DemoImages
from vavae.data.images import Selection
from vavae.errors import RunError, UserError
from vavae.evaluation import features
from vavae.evaluation.features import Block, BlockStore, ImageSet, extract
from vavae.evaluation.images import source_images
from vavae.metrics import FeatureNetwork, RunningMoments
from vavae.training.parallel import World

TEST = DemoImages("test")
PIXELS = torch.tensor(TEST.pixels)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BLOCK", 30)


def images(count: int) -> ImageSet:
    return source_images(Selection(TEST, torch.arange(count).numpy()), 32)


class Counting:
    """A network that counts its calls and stops after some."""

    def __init__(self, limit: int = 10**9) -> None:
        self.calls = 0
        self.limit = limit
        plain = color_network("counting")

        def compute(pixels: torch.Tensor) -> Mapping[str, torch.Tensor]:
            self.calls += 1
            if self.calls > self.limit:
                raise KeyboardInterrupt
            return plain.all_parts(pixels)

        self.network = replace(plain, compute=compute)


def run(store: BlockStore, networks: Sequence[FeatureNetwork], count: int = 100, parts: Sequence[str] = ("pool",)):
    return extract(images(count), networks, store, 8, World(), "test", parts)


def test_features_are_in_image_order(tmp_path):
    network = color_network()
    found = run(BlockStore(tmp_path), [network], parts=("pool", "spatial"))[network.name]
    whole = network.all_parts(PIXELS[:100])
    torch.testing.assert_close(found.all(), whole["pool"], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.all("spatial"), whole["spatial"], rtol=0, atol=1e-6)
    expected = RunningMoments(12)
    expected.update(whole["pool"])
    assert found.count == found.moments().count == 100
    torch.testing.assert_close(found.moments().covariance, expected.covariance, rtol=1e-6, atol=1e-9)


def test_stopped_run_resumes(tmp_path):
    """100 images in blocks of 30 and batches of 8 are 4 + 4 + 4 + 2 calls."""
    whole = Counting()
    expected = run(BlockStore(tmp_path / "whole"), [whole.network])["counting"]
    assert whole.calls == 14
    stopped = Counting(limit=6)
    with pytest.raises(KeyboardInterrupt):
        run(BlockStore(tmp_path / "parts"), [stopped.network])
    again = Counting()
    found = run(BlockStore(tmp_path / "parts"), [again.network])["counting"]
    assert again.calls == 10
    assert found.keys == expected.keys and found.content == expected.content
    assert torch.equal(found.all(), expected.all())
    assert torch.equal(found.moments().covariance, expected.moments().covariance)
    third = Counting()
    run(BlockStore(tmp_path / "parts"), [third.network])
    assert third.calls == 0


def test_only_missing_features_are_computed(tmp_path):
    store, first, second = BlockStore(tmp_path), Counting(), color_network("second")
    run(store, [first.network], 60)
    run(store, [first.network, second], 60)
    assert first.calls == 8
    run(store, [first.network], 60, ("pool", "logits"))  # one more part: all blocks are computed again
    assert first.calls == 16
    run(store, [first.network], 100, ("pool", "logits"))  # two more blocks
    assert first.calls == 22


def test_features_belong_to_content(tmp_path):
    store, network = BlockStore(tmp_path), Counting()
    a = run(store, [network.network], 60)["counting"]
    other = source_images(Selection(TEST, torch.arange(60).flip(0).numpy()), 32)
    b = extract(other, [network.network], store, 8, World(), "test")["counting"]
    assert a.content != b.content and network.calls == 16
    assert torch.equal(b.all(), a.all().flip(0))


def test_damaged_file_is_named(tmp_path):
    store, network = BlockStore(tmp_path), color_network()
    found = run(store, [network], 40)[network.name]
    file = next(tmp_path.rglob("*.safetensors"))
    assert load_file(file)["pool"].shape[1] == 12
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match=file.name):
        found.all()
    with pytest.raises(UserError, match="demo-test must have at least one image, got none"):
        run(store, [network], 0)


def test_zeroed_features_are_damage(tmp_path):
    store, network = BlockStore(tmp_path), color_network()
    found = run(store, [network], 30)[network.name]
    (file,) = tmp_path.rglob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-200] + bytes(200))
    with pytest.raises(
        UserError, match=rf"{file.name}: stored features are damaged \(its content does not match its hash\)"
    ):
        found.all()
    file.write_bytes(whole)
    save_file({"pool": found.all()}, file)
    with pytest.raises(
        UserError, match=rf"{file.name}: stored features are damaged \(its content does not match its hash\)"
    ):
        found.all()


def test_unreadable_file_is_not_called_damaged(tmp_path):
    store, network = BlockStore(tmp_path), color_network()
    found = run(store, [network], 30)[network.name]
    with limited("NOFILE"), pytest.raises(OSError, match=r"Too many open files: .*safetensors"):
        found.all()
    assert len(found.all()) == 30


def test_networks_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="network: inception is named twice"):
        run(BlockStore(tmp_path), [color_network("inception"), color_network("b"), color_network("inception")])
    assert not list(tmp_path.rglob("*.safetensors"))


def test_part_named_twice_is_stored_once(tmp_path):
    network = color_network()
    found = run(BlockStore(tmp_path), [network], 40, ("pool", "spatial", "spatial"))[network.name]
    assert torch.equal(found.all("spatial"), network.all_parts(PIXELS[:40])["spatial"])


def test_blocks_of_wrong_length_are_recomputed(tmp_path):
    store, network = BlockStore(tmp_path), Counting()
    expected = run(store, [network.network])["counting"].all()
    files = sorted(tmp_path.rglob("*.safetensors"))
    for file in files[:2]:
        save_file({"pool": load_file(file)["pool"].repeat_interleave(2, 0)}, file)
    network.calls = 0
    found = run(store, [network.network])["counting"]
    assert torch.equal(found.all(), expected) and 0 < network.calls <= 8
    assert found.moments().count == 100


def test_features_of_wrong_length_are_not_stored(tmp_path):
    doubling = FeatureNetwork("twofold", "twofold", torch.device("cpu"), lambda pixels: torch.ones(2 * len(pixels), 3))
    with pytest.raises(RunError, match=r"twofold: gave 60 features \(pool\) of 30 images"):
        run(BlockStore(tmp_path), [doubling])
    assert not list(tmp_path.rglob("*.safetensors"))


def test_nonfinite_features_are_refused(tmp_path):
    broken = FeatureNetwork(
        "broken", "broken", torch.device("cpu"), lambda pixels: torch.full((len(pixels), 3), torch.nan)
    )
    with pytest.raises(RunError, match=r"broken: features \(pool\) of demo-test are not finite"):
        run(BlockStore(tmp_path), [broken])
    assert not list(tmp_path.rglob("*.safetensors"))


class Timed:
    """A set of 24 images that records when each batch was loaded and can fail at one of them."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.made: list[float] = []
        self.images = ImageSet("timed", 24, 4, lambda indices: Block(f"{fail_at} {indices.start}", self.pixels))
        self.fail_at = fail_at

    def pixels(self, part: slice) -> torch.Tensor:
        if len(self.made) == self.fail_at:
            raise UserError("broken image")
        self.made.append(time.monotonic())
        return torch.zeros(part.stop - part.start, 4, 4, 3, dtype=torch.uint8)


def test_next_images_load_while_network_computes(tmp_path):
    source, began = Timed(), []

    def compute(pixels: torch.Tensor) -> torch.Tensor:
        began.append(time.monotonic())
        time.sleep(0.05)
        return torch.zeros(len(pixels), 2)

    network = FeatureNetwork("slow", "slow", torch.device("cpu"), compute)
    extract(source.images, [network], BlockStore(tmp_path), 4, World(), "test")
    assert len(source.made) == len(began) == 6
    # The second and third batch are loaded while the network computes the first.
    assert source.made[1] < began[1] - 0.03 and source.made[2] < began[1] - 0.03


def test_errors_leave_no_thread(tmp_path):
    before = threading.active_count()
    with pytest.raises(UserError, match="broken image"):
        extract(Timed(fail_at=3).images, [color_network()], BlockStore(tmp_path), 4, World(), "test")
    with pytest.raises(KeyboardInterrupt):
        run(BlockStore(tmp_path), [Counting(limit=0).network])
    assert threading.active_count() == before


def test_drafts_of_killed_processes_are_removed(tmp_path: Path) -> None:
    store, other = BlockStore(tmp_path), BlockStore(tmp_path)
    draft = tmp_path / "ab" / ".abc.safetensors.0123456789abcdef.tmp"
    draft.parent.mkdir()
    draft.touch()
    with store.in_use(), other.in_use():
        assert not draft.exists()
        draft.touch()  # a draft that the first store is writing
        with other.in_use():
            assert draft.exists()
    with other.in_use():
        assert not draft.exists()
