"""Stored features of images, in blocks: constant memory, stopped runs resume, processes share the work.

A block is a fixed number of consecutive images of a set. Its features are in one file per network and part. The file's
name is a hash of the images' content (or of all that determines generated images) and the network's fingerprint.
Moments and scores are added up block by block in order, so the numbers do not depend on which process computed which
block, or when.
"""

import fcntl
import io
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vavae.config.image_size import Size
from vavae.data.found import Found
from vavae.device import device_lock, without_tf32
from vavae.errors import RunError, UserError
from vavae.io.files import drop_drafts, written_whole
from vavae.io.hashing import digest, tensor_digest
from vavae.metrics import FeatureNetwork, RunningMoments, moments_of
from vavae.metrics.inception import full_precision
from vavae.progress import track
from vavae.training.compile import CompileOption, InferenceCompilation
from vavae.training.parallel import World

BLOCK = 250  # images; divides 1,000, 10,000 and 50,000
_AHEAD = 3  # batches of pixels that may wait for the networks
_COMPILING = 5.0  # times the cost of a transformer's block: Inception was not ready after three minutes on a core
_NOT_SEARCHED = Found("")

T = TypeVar("T")


class BlockStore:
    """Named tensors in the files of a folder, each written whole or not at all; all of them can be computed again."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Mark the store as in use. Remove drafts of killed processes first, unless another process uses the store."""
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
        """Return whether a file of this name exists."""
        return self._path(key).is_file()

    def rows(self, key: str, name: str) -> int | None:
        """Return the length of the tensor `name` under `key` without reading its values, or None if it is missing.

        Raises:
            UserError: The file is damaged; the message names it.
            OSError: The file cannot be read now.
        """
        path = self._path(key)
        if not path.is_file():
            return None
        with _opened(path) as stored:
            return stored.get_slice(name).get_shape()[0] if name in stored.keys() else None  # noqa: SIM118

    def read(self, key: str) -> dict[str, Tensor]:
        """Return the tensors under `key`.

        Raises:
            UserError: The file is missing or damaged; the message names it.
            OSError: The file cannot be read now.
        """
        path = self._path(key)
        with _opened(path) as stored:
            recorded = (stored.metadata() or {}).get("sha256")
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        if recorded != _content(tensors):
            raise _damaged(path, "its content does not match its hash")
        return tensors

    def write(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Store tensors under `key`."""
        path = self._path(key)
        plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with written_whole(path) as partial:
            save_file(plain, partial, {"sha256": _content(plain)})


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    """Open a file of tensors. Only a fault of the file is damage; too many open files, for example, is not."""
    try:
        with path.open("rb"):  # the library reports every file that it cannot open as missing
            pass
        with safe_open(path, "pt") as stored:
            yield stored
    except (SafetensorError, FileNotFoundError) as error:
        raise _damaged(path, error) from error


def _content(tensors: dict[str, Tensor]) -> str:
    return digest(*(f"{name} {tensor_digest(tensors[name])}" for name in sorted(tensors)))


def _damaged(path: Path, error: Exception | str) -> UserError:
    return UserError(f"{path}: stored features are damaged ({error}); remove the file")


@dataclass(frozen=True, eq=False)
class Block:
    """Some consecutive images of a set."""

    key: str  # hash of their content, or of all that determines it
    # Function from a slice of them to their pixels, (B, H, W, 3) uint8. It is called for each batch in order.
    pixels: Callable[[slice], Tensor]
    complete: bool = True  # whether everything that `pixels` also stores exists already


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A set of images to measure. `vavae.evaluation.images` makes them."""

    name: str  # name of the set, for messages
    count: int
    size: Size  # size of the images in pixels
    block: Callable[[range], Block]  # function from the indices of consecutive images to their block
    # Where the images are and which files were passed over, if opening the set found that out.
    found: Found = _NOT_SEARCHED


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """Features of a set of images by one network."""

    network: FeatureNetwork
    count: int
    content: str  # hash of the images
    store: BlockStore
    keys: tuple[str, ...]  # hash of each block's images
    parts: tuple[str, ...] = ("pool",)  # parts of the network's output that are stored

    def blocks(self, part: str = "pool") -> Iterator[Tensor]:
        """Yield the features (B, d) float32, block by block in order."""
        for key in self.keys:
            yield self.store.read(_file_key(key, self.network, part))[part]

    def moments(self, part: str = "pool") -> RunningMoments:
        """Return mean and covariance, in constant memory."""
        return moments_of(self.blocks(part))

    def all(self, part: str = "pool") -> Tensor:
        """Return all features, (N, d) float32."""
        found = torch.empty(0)
        filled = 0
        # Joining a list of blocks would hold all of them twice.
        for block in self.blocks(part):
            found = found if filled else block.new_empty(self.count, *block.shape[1:])
            found[filled : filled + len(block)] = block
            filled += len(block)
        return found


def _file_key(content: str, network: FeatureNetwork, part: str) -> str:
    return digest(content, network.fingerprint, part)


def extract(
    images: ImageSet,
    networks: Sequence[FeatureNetwork],
    store: BlockStore,
    batch_size: int,
    processes: World,
    description: str,
    parts: Sequence[str] = ("pool",),
) -> dict[str, StoredFeatures]:
    """Compute features of all images by several networks in one pass, store them, and return them by network.

    Stored blocks are not computed again, except if a file has features of another number of images. A thread decodes or
    draws the next images while the networks compute. Each process takes every n-th block; all processes must call this
    with the same arguments. Of `parts`, each network stores those that it has.

    Raises:
        UserError: The set is empty, or two networks have one name.
        RunError: A network gave features of another number of images, or features that are not finite.
    """
    if images.count == 0:
        raise UserError(f"{images.name} must have at least one image, got none")
    names = [network.name for network in networks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"network: {twice} is named twice")
    wanted = {n.name: tuple(part for part in dict.fromkeys(parts) if part in n.parts) for n in networks}
    device = networks[0].device
    starts = range(0, images.count, BLOCK)
    mine = [range(start, min(start + BLOCK, images.count)) for start in starts[processes.rank :: processes.size]]

    def missing(key: str, count: int) -> list[FeatureNetwork]:
        """Return the networks that have no features of a block of `count` images."""
        return [n for n in networks if any(store.rows(_file_key(key, n, p), p) != count for p in wanted[n.name])]

    keys: dict[int, str] = {}
    with (
        store.in_use(),
        # Held for all blocks: the networks switch it, and a generator in the other thread must not notice.
        full_precision(device),
        track(description, sum(map(len, mine)), "images", stream=None if processes.first else io.StringIO()) as bar,
        closing(_ahead(_batches(images, mine, batch_size, missing, device))) as batches,
    ):
        outputs: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
        for indices, block, lacking, pixels in batches:
            if pixels is not None:
                for network in lacking:
                    with device_lock(device):  # the copies too
                        with without_tf32():
                            found = network.all_parts(pixels)
                        for part in wanted[network.name]:
                            outputs[network.name, part].append(found[part].cpu())
                bar.advance(len(pixels))
                continue
            for network in lacking:
                for part in wanted[network.name]:
                    features = _checked(outputs.pop((network.name, part)), len(indices), network, part, images)
                    store.write(_file_key(block.key, network, part), {part: features})
            if not lacking and block.complete:
                bar.advance(len(indices))
            keys[indices.start] = block.key
    everyone = {start: key for part in processes.gather(keys) for start, key in part.items()}
    ordered = tuple(everyone[start] for start in starts)
    content = digest(images.count, *ordered)
    return {n.name: StoredFeatures(n, images.count, content, store, ordered, wanted[n.name]) for n in networks}


def _checked(batches: list[Tensor], count: int, network: FeatureNetwork, part: str, images: ImageSet) -> Tensor:
    """Join the features (B, d) of a block's batches. Raise RunError if they are not `count` or not finite."""
    features = torch.cat(batches)
    if len(features) != count:
        raise RunError(f"{network.name}: gave {len(features)} features ({part}) of {count} images")
    if not bool(features.isfinite().all()):
        raise RunError(f"{network.name}: features ({part}) of {images.name} are not finite")
    return features


def _batches(
    images: ImageSet,
    blocks: Sequence[range],
    batch_size: int,
    missing: Callable[[str, int], list[FeatureNetwork]],
    device: torch.device,
) -> Iterator[tuple[range, Block, list[FeatureNetwork], Tensor | None]]:
    """Yield the pixels of each batch that networks need, and None at the end of every block.

    Each comes with the indices of the block's images, the block, and the networks that need it.
    """
    # A stream of its own lets sampling and feature networks share a GPU.
    with torch.cuda.stream(torch.cuda.Stream()) if torch.cuda.is_available() else nullcontext():
        for indices in blocks:
            block = images.block(indices)
            lacking = missing(block.key, len(indices))
            if lacking or not block.complete:
                for start in range(0, len(indices), batch_size):
                    with device_lock(device):
                        pixels = block.pixels(slice(start, start + batch_size))
                    yield indices, block, lacking, pixels
            yield indices, block, lacking, None


def _ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """Yield the items in order; one thread makes the next ones meanwhile. Close it to stop the thread."""
    pool = ThreadPoolExecutor(1)
    try:
        waiting = deque(pool.submit(next, items, None) for _ in range(_AHEAD))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def compiled_features(
    network: FeatureNetwork, option: CompileOption, batches: int, say: Callable[[str], object] = print
) -> FeatureNetwork:
    """Return a feature network that is compiled while it works on `batches` batches; see `InferenceCompilation`."""
    device = network.device
    compilation = InferenceCompilation(network.name, network.modules, option, device, batches, say=say, cost=_COMPILING)

    def compute(pixels: Tensor) -> Tensor | Mapping[str, Tensor]:
        compilation.before(partial(network.compute, pixels), len(pixels))
        return network.compute(pixels)

    return network if compilation.decided else replace(network, compute=compute)
