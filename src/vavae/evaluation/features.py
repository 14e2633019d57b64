"""Features on the disk in blocks of images, so that memory is constant, a stopped run goes on, and processes share.

A block is a fixed number of consecutive images of a set. Its features lie in one file per network, named by a hash of
the images' content (or of what determines generated images) and the network's fingerprint. Moments and scores are then
added up block by block in order: the numbers do not depend on who computed which block, or when.
"""

import fcntl
import io
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vavae.config.image_size import Size
from vavae.device import device_lock, without_tf32
from vavae.errors import RunError, UserError
from vavae.io.files import drop_drafts, written_whole
from vavae.io.hashing import digest, tensor_digest
from vavae.metrics import FeatureNetwork, RunningMoments
from vavae.metrics.inception import full_precision
from vavae.progress import track
from vavae.training.parallel import World

BLOCK = 250  # images; divides 1,000, 10,000 and 50,000
_WAITING = 3  # batches of pixels that may wait for the networks


class BlockStore:
    """Named tensors on the disk, each file written whole or not at all.

    Args:
        folder: Where; it may be deleted at any time, which costs the work only.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Mark the store as in use. Drafts of killed processes go first, unless another process uses the store."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a") as lock:
            with suppress(OSError):  # it is in use, or the file system has no locks
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for folder in self.folder.glob("??"):
                    drop_drafts(folder)
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_SH)
            yield

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether there is a file of this name."""
        return self._path(key).is_file()

    def rows(self, key: str, name: str) -> int | None:
        """Length of the tensor `name` under `key`, read without its values; None where there is none.

        Raises:
            UserError: The file is damaged; the message names it.
            OSError: It cannot be read now.
        """
        path = self._path(key)
        if not path.is_file():
            return None
        with _opened(path) as stored:
            return stored.get_slice(name).get_shape()[0] if name in stored.keys() else None  # noqa: SIM118

    def read(self, key: str) -> dict[str, Tensor]:
        """The tensors under `key`.

        Raises:
            UserError: The file is missing or damaged; the message names it.
            OSError: It cannot be read now.
        """
        path = self._path(key)
        with _opened(path) as stored:
            said = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        # Files of former versions have no digest.
        if "sha256" in said and said["sha256"] != _content(tensors):
            raise _damaged(path, "not what was written")
        return tensors

    def write(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Store tensors under `key`."""
        path = self._path(key)
        plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with written_whole(path) as partial:
            save_file(plain, partial, {"sha256": _content(plain)})


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    """A file of tensors. Only what is wrong with the file itself is damage: too many open files, say, is not."""
    try:
        with path.open("rb"):  # the library calls whatever it cannot open missing
            pass
        with safe_open(path, "pt") as stored:
            yield stored
    except (SafetensorError, FileNotFoundError) as error:
        raise _damaged(path, error) from error


def _content(tensors: dict[str, Tensor]) -> str:
    return digest(*(f"{name} {tensor_digest(tensors[name])}" for name in sorted(tensors)))


def _damaged(path: Path, error: Exception | str) -> UserError:
    return UserError(f"{path}: stored features are damaged ({error}): remove the file")


@dataclass(frozen=True, eq=False)
class Block:
    """Some consecutive images of a set.

    Attributes:
        key: Hash of their content, or of what determines it.
        batches: Batch size -> their pixels, (B, H, W, 3) uint8 each, in order.
        complete: Whether all that `batches` stores by the way is there already.
    """

    key: str
    batches: Callable[[int], Iterator[Tensor]]
    complete: bool = True


class ImageBlocks(Protocol):
    """A set of images in blocks of `BLOCK`.

    Attributes:
        name: What to call it.
        count: Number of images.
        size: Of its images in pixels; None where only the images know.
    """

    name: str
    count: int
    size: Size | None

    def open(self, indices: Sequence[int]) -> Block:
        """The block of these images."""
        ...


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """Features of a set of images by one network.

    Attributes:
        network: The network.
        count: Number of images.
        content: Hash of the images.
        store: Where the features are.
        keys: Content of each block.
        parts: What of the network's features was asked for.
    """

    network: FeatureNetwork
    count: int
    content: str
    store: BlockStore
    keys: tuple[str, ...]
    parts: tuple[str, ...] = ("pool",)

    def blocks(self, part: str = "pool") -> Iterator[Tensor]:
        """Features (B, d) float32, block by block in order."""
        for key in self.keys:
            yield self.store.read(_file_key(key, self.network, part))[part]

    def moments(self, part: str = "pool") -> RunningMoments:
        """Mean and covariance, in constant memory."""
        moments: RunningMoments | None = None
        for block in self.blocks(part):
            moments = moments or RunningMoments(block.shape[1])
            moments.update(block)
        assert moments is not None
        return moments

    def all(self, part: str = "pool") -> Tensor:
        """All features, (N, d) float32."""
        found = torch.empty(0)
        filled = 0
        # Not a list of blocks put together, which would hold all of them twice.
        for block in self.blocks(part):
            found = found if filled else block.new_empty(self.count, *block.shape[1:])
            found[filled : filled + len(block)] = block
            filled += len(block)
        return found


def _file_key(content: str, network: FeatureNetwork, part: str) -> str:
    return digest(content, network.fingerprint, part)


def extract(
    images: ImageBlocks,
    networks: Sequence[FeatureNetwork],
    store: BlockStore,
    batch_size: int,
    processes: World,
    description: str,
    parts: Sequence[str] = ("pool",),
) -> dict[str, StoredFeatures]:
    """Features of all images by several networks in one pass; what is stored already is not computed again.

    A stored block with features of more or fewer images than the block has is computed anew.

    A thread decodes or draws the next images while the networks see the last ones. Every process takes every n-th
    block; all must call this alike.

    Args:
        images: The set.
        networks: The networks.
        store: Where features go.
        batch_size: Images at once.
        processes: Who shares the work.
        description: For the progress bar.
        parts: Which of what the networks say.

    Returns:
        The features by name of network.

    Raises:
        UserError: There are no images, or two networks have one name.
        RunError: A network gave features of more or fewer images than it was shown.
    """
    if images.count == 0:
        raise UserError(f"{images.name}: there are no images")
    names = [network.name for network in networks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"network: {twice} is named twice")
    starts = list(range(0, images.count, BLOCK))
    mine = starts[processes.rank :: processes.size]
    wanted = {network.name: [part for part in dict.fromkeys(parts) if part in network.parts] for network in networks}
    keys: dict[int, str] = {}
    total = sum(_length(images, start) for start in mine)
    device = networks[0].device if networks else torch.device("cpu")
    with (
        store.in_use(),
        # Held for all of it: the networks switch it, and a generator in the other thread must not notice.
        full_precision(device),
        track(description, total, "images", stream=None if processes.first else io.StringIO()) as bar,
        _Ahead(images, mine, batch_size, _missing(networks, wanted, store), device) as blocks,
    ):
        for start, block, missing in blocks:
            keys[start] = block.key
            found: dict[str, dict[str, list[Tensor]]] = {n.name: {p: [] for p in wanted[n.name]} for n in missing}
            for pixels in blocks.pixels():
                for network in missing:
                    with device_lock(device):
                        with without_tf32():
                            said = network.all_parts(pixels)
                        for part in wanted[network.name]:
                            found[network.name][part].append(said[part].cpu())
                bar.advance(len(pixels))
            for network in missing:
                for part, values in found[network.name].items():
                    features, count = torch.cat(values), _length(images, start)
                    if len(features) != count:
                        raise RunError(f"{network.name}: gave {len(features)} features ({part}) of {count} images")
                    store.write(_file_key(block.key, network, part), {part: features})
            if not missing and block.complete:
                bar.advance(_length(images, start))
    everyone = {start: key for part in processes.gather(keys) for start, key in part.items()}
    ordered = tuple(everyone[start] for start in starts)
    content = digest(images.count, *ordered)
    return {n.name: StoredFeatures(n, images.count, content, store, ordered, tuple(wanted[n.name])) for n in networks}


def _length(images: ImageBlocks, start: int) -> int:
    """Number of images of the block that begins at `start`."""
    return min(BLOCK, images.count - start)


def _missing(
    networks: Sequence[FeatureNetwork], wanted: dict[str, list[str]], store: BlockStore
) -> Callable[[Block, int], list[FeatureNetwork]]:
    """Which networks have no features of a block of so many images."""

    def find(block: Block, count: int) -> list[FeatureNetwork]:
        return [n for n in networks if any(store.rows(_file_key(block.key, n, p), p) != count for p in wanted[n.name])]

    return find


_Item = tuple[int, Block, list[FeatureNetwork]] | Tensor | BaseException | None


class _Ahead:
    """Blocks and their pixels, made by a thread a few batches ahead of whoever takes them.

    Iterate over it for blocks; for each, iterate over `pixels()`, which is empty where nothing is missing.
    """

    def __init__(
        self,
        images: ImageBlocks,
        starts: Sequence[int],
        batch_size: int,
        missing: Callable[[Block, int], list[FeatureNetwork]],
        device: torch.device,
    ) -> None:
        self._images = images
        self._starts = starts
        self._batch_size = batch_size
        self._missing = missing
        self._device = device
        self._queue: queue.Queue[_Item] = queue.Queue(_WAITING)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "_Ahead":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while self._thread.is_alive():  # it may be waiting for room in the queue
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def _work(self) -> None:
        # A stream of its own lets sampling and feature networks share a GPU.
        stream = torch.cuda.stream(torch.cuda.Stream()) if torch.cuda.is_available() else nullcontext()
        try:
            with stream:
                for start in self._starts:
                    count = _length(self._images, start)
                    block = self._images.open(range(start, start + count))
                    missing = self._missing(block, count)
                    if not self._put((start, block, missing)):
                        return
                    if missing or not block.complete:
                        batches = iter(block.batches(self._batch_size))
                        while (pixels := self._next(batches)) is not None:
                            if not self._put(pixels):
                                return
                    self._put(None)
        except BaseException as error:
            self._put(error)
            return
        self._put(None)

    def _next(self, batches: Iterator[Tensor]) -> Tensor | None:
        with device_lock(self._device):
            return next(batches, None)

    def _put(self, item: _Item) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _get(self) -> _Item:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def __iter__(self) -> Iterator[tuple[int, Block, list[FeatureNetwork]]]:
        while isinstance(item := self._get(), tuple):
            yield item

    def pixels(self) -> Iterator[Tensor]:
        """The batches of the block last taken."""
        while isinstance(item := self._get(), Tensor):
            yield item
