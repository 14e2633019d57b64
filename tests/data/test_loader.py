"""Order of images in training, and loading in advance."""

import threading
import time
from contextlib import closing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vavae.data import IndexStream, load_batches, loaded_ahead
from vavae.errors import UserError


def indices(stream: IndexStream, first: int, count: int) -> list[int]:
    return stream.batch(first, count)[0].tolist()


def test_epochs_are_permutations():
    stream = IndexStream(50, seed=3)
    epochs = [indices(stream, 50 * epoch, 50) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert indices(IndexStream(50, seed=4), 0, 50) != epochs[0]


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 40), seed=st.integers(0, 5), start=st.integers(0, 200), sizes=st.lists(st.integers(1, 60)))
def test_order_is_independent_of_batching(length, seed, start, sizes):
    whole = indices(IndexStream(length, seed), start, max(1, sum(sizes)))
    stream, position, pieces = IndexStream(length, seed), start, []
    for size in sizes:
        batch, positions = stream.batch(position, size)
        assert positions.tolist() == list(range(position, position + size))
        pieces += batch.tolist()
        position += size
    assert pieces == whole[: len(pieces)]


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_processes_share_one_global_order(world):
    alone = IndexStream(37, seed=1)
    ranks = [IndexStream(37, seed=1, rank=rank, world=world) for rank in range(world)]
    for position in (0, 24, 4800):
        shares = [stream.batch(position, 24) for stream in ranks]
        assert torch.equal(torch.cat([share[0] for share in shares]), alone.batch(position, 24)[0])
        assert torch.equal(torch.cat([share[1] for share in shares]), alone.batch(position, 24)[1])


def test_bad_sizes_are_refused():
    with pytest.raises(UserError, match=r"batch_size 10 .* 4 processes"):
        IndexStream(5, 0, rank=1, world=4).batch(0, 10)
    with pytest.raises(UserError, match="empty"):
        IndexStream(0, 0)
    with pytest.raises(UserError, match="batch_size 0"):
        next(load_batches(IndexStream(5, 0), lambda i, p: i, 0))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_loader_keeps_order_and_resumes(workers):
    def load(batch: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        time.sleep(0.002 * float(batch[0] % 3))  # later batches may be ready earlier
        return batch * 10

    with closing(load_batches(IndexStream(21, 5), load, 4, workers=workers)) as loader:
        run = [next(loader) for _ in range(12)]
    assert [batch.position for batch in run] == list(range(0, 48, 4))
    assert all(torch.equal(batch.data, batch.indices * 10) for batch in run)
    with closing(load_batches(IndexStream(21, 5, start=run[7].position), load, 4, workers=workers)) as loader:
        for before, after in zip(run[7:], loader, strict=False):
            assert torch.equal(before.indices, after.indices) and torch.equal(before.positions, after.positions)


def test_loader_prefetches_four_batches():
    started: list[int] = []

    def load(batch: torch.Tensor, positions: torch.Tensor) -> None:
        started.append(int(positions[0]))

    with closing(load_batches(IndexStream(100, 0), load, 2, workers=2)) as loader:
        next(loader)
        deadline = time.monotonic() + 5
        while len(started) < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert sorted(started) == [0, 2, 4, 6]


def test_loader_raises_errors_and_stops_threads():
    def load(batch: torch.Tensor, positions: torch.Tensor) -> int:
        if positions[0] == 4:
            raise UserError("cannot read image 4")
        return int(positions[0])

    before = threading.active_count()
    with closing(load_batches(IndexStream(100, 0), load, 2, workers=2)) as loader:
        assert [next(loader).data, next(loader).data] == [0, 2]
        with pytest.raises(UserError, match="image 4"):
            next(loader)
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(loader)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_loaded_ahead_keeps_order_of_parts_and_errors(workers):
    parts = torch.arange(10).split(3)
    loaded = list(loaded_ahead(parts, lambda part: part * 2, workers))
    assert [part.tolist() for part, _ in loaded] == [part.tolist() for part in parts]
    assert all(torch.equal(result, part * 2) for part, result in loaded)

    def fails(part):
        if 6 in part:
            raise UserError("the third")
        return part

    found = loaded_ahead(parts, fails, workers)
    assert [next(found)[0][0].item() for _ in range(2)] == [0, 3]
    with pytest.raises(UserError, match="the third"):
        next(found)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("load")]


def test_all_workers_have_work():
    """As many batches are loaded at once as there are workers."""
    started = threading.Barrier(7)  # six loads at once, and this thread
    stream = IndexStream(100, seed=0)

    def load(indices, positions):
        started.wait(timeout=20)
        return indices

    with closing(load_batches(stream, load, batch_size=2, workers=6)) as loader:
        reader = threading.Thread(target=next, args=(loader,))
        reader.start()
        started.wait(timeout=20)
        reader.join()
        started.abort()  # releases loads that started later
