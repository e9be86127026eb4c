"""Images that are kept decoded in memory: those that are drawn most often for the memory that they take.

Class-balanced sampling draws an image of a rare class over and over. Kept decoded, it costs a cut and a resize instead
of a read and a whole decoding, and its crops are the same.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from cbd_fast.errors import InputError
from cbd_fast.loading.cache.shared_memory import ProgressCallback, SharedMemory
from cbd_fast.resources import available_bytes
from cbd_fast.shards.reader import ShardReader

NUM_PASSES = 20  # over what is left; the room that remains is then less than a few images
ALIGNMENT = 64  # bytes; an image begins on a line of the processor's cache

# from (n,) indices to n images, each (height, width, 3) uint8, or None where there is none
DecodeWhole = Callable[[np.ndarray], list[torch.Tensor | None]]


def choose_cached(
    entries: np.ndarray, draw_fractions: np.ndarray, *, fraction: float | None = None, gigabytes: float | None = None
) -> np.ndarray:
    """The images that serve the most draws per byte: a greedy choice, best first, until the limit.

    Args:
        entries: ``(num_images,)`` of ``INDEX_DTYPE``, the whole index.
        draw_fractions: ``(num_classes,)`` fraction of all draws that falls on each image of a class.
        fraction: limit as a fraction of the images, 0 to 1.
        gigabytes: limit of the memory, in 10**9 bytes; only one of the two limits may be set.

    Returns:
        ``(n,)`` int64 indices of images, ascending.

    Raises:
        InputError: both limits, or an impossible one.
    """
    if fraction is not None and gigabytes is not None:
        raise InputError(f"cache={fraction:g} and cache_gb={gigabytes:g}: set one of them")
    if fraction is not None and not 0 <= fraction <= 1:
        raise InputError(f"cache={fraction:g}: must be from 0 to 1, a fraction of the images")
    if gigabytes is not None and not gigabytes >= 0:
        raise InputError(f"cache_gb={gigabytes:g}: must be 0 or more")
    num_bytes = image_bytes(entries)
    usable = num_bytes > 0  # quarantined images have no size
    # float32 is enough to compare by, and half the memory
    value = np.zeros(len(entries), np.float32)
    np.divide(draw_fractions[entries["label"]], num_bytes, out=value, where=usable, casting="same_kind")
    best_first = np.argsort(-value, kind="stable")[: np.count_nonzero(usable)]
    if fraction is not None:
        return np.sort(best_first[: int(fraction * len(entries))])
    return np.sort(_first_that_fit(best_first, _aligned(num_bytes) + 1, int((gigabytes or 0) * 10**9)))


def _first_that_fit(candidates: np.ndarray, num_bytes: np.ndarray, room: int) -> np.ndarray:
    """Those of the candidates that fit one after the other, passing over any that is too large by then."""
    taken = [candidates[:0]]
    for _ in range(NUM_PASSES):
        candidates = candidates[num_bytes[candidates] <= room]
        ends = np.cumsum(num_bytes[candidates])
        num_fitting = np.count_nonzero(ends <= room)
        if not num_fitting:
            break
        taken.append(candidates[:num_fitting])
        room -= int(ends[num_fitting - 1])
        candidates = candidates[num_fitting:]
    return np.concatenate(taken)


def image_bytes(entries: np.ndarray) -> np.ndarray:
    """``(n,)`` int64 decoded sizes of the images that entries of the index are of."""
    return entries["width"].astype(np.int64) * entries["height"] * 3


def block_bytes(entries: np.ndarray) -> int:
    """Bytes that it takes to keep the images of these entries: their pixels, and for each whether it is there."""
    return int(_aligned(image_bytes(entries)).sum()) + len(entries)


def require_possible(indices: np.ndarray, *, on_gpu: bool, decodes_on_gpu: bool) -> None:
    """Refuses images that cannot be kept.

    Raises:
        InputError: no images, or they are to be kept on a GPU where nothing is decoded on one.
    """
    if on_gpu and not decodes_on_gpu:
        raise InputError(
            "cache_on_gpu: images are not decoded on a GPU here, so there they would be of no use; it needs a "
            "GPU and decoder=dali"
        )
    if not len(indices):
        raise InputError("cache: the limit has no room for a single image; raise cache or cache_gb")


def require_room(num_images: int, num_bytes: int, available: int, where: str) -> None:
    """Refuses cached images for which there is no memory.

    Raises:
        InputError: ``num_bytes`` is more than ``available``.
    """
    if num_bytes > available:
        raise InputError(
            f"{num_images:,} cached images need {num_bytes / 1e9:,.3g} GB, but {where} has only "
            f"{available / 1e9:,.3g} GB left; lower cache or cache_gb, or store smaller images "
            "(make_shards.py --short-side)"
        )


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where in a block of memory each of n images lies; behind them lies one byte for each: whether it is there.

    Attributes:
        shapes: ``(n, 2)`` int64 heights and widths in pixels.
        offsets: ``(n + 1,)`` int64, first byte of each image, and of the flags.
    """

    shapes: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of_entries(cls, entries: np.ndarray) -> "_Layout":
        """The layout for entries of the index."""
        return cls(
            shapes=np.stack([entries["height"], entries["width"]], axis=1).astype(np.int64),
            offsets=np.concatenate([[0], np.cumsum(_aligned(image_bytes(entries)))]),
        )

    def image(self, block: torch.Tensor, slot: int) -> torch.Tensor:
        """``(height, width, 3)`` uint8, a view of the block."""
        height, width = self.shapes[slot].tolist()
        start = int(self.offsets[slot])
        return block[start : start + height * width * 3].view(height, width, 3)

    def flags(self, block: torch.Tensor) -> torch.Tensor:
        """``(n,)`` uint8, a view of the block: 1 for each image that is there."""
        return block[int(self.offsets[-1]) :]


@dataclass(frozen=True, kw_only=True)
class _Filler:
    """Decodes images into a block of memory, a group after the other in the order of their files."""

    shards: ShardReader
    indices: np.ndarray
    layout: _Layout
    groups: Sequence[np.ndarray]
    decode: DecodeWhole
    mapping: Callable[..., Iterable[int]]

    def __call__(self, block: torch.Tensor, on_progress: ProgressCallback) -> None:
        """Fills the block; reports the number of images that are done, of all."""
        if block.device.type == "cpu":
            require_room(len(self.indices), len(block), available_bytes(), "this machine")
        self.layout.flags(block).zero_()
        num_done = 0
        on_progress(num_done, len(self.indices))
        for num_tried in self.mapping(partial(self._fill_group, block), range(len(self.groups))):
            num_done += num_tried
            on_progress(num_done, len(self.indices))

    def _fill_group(self, block: torch.Tensor, number: int) -> int:
        if number + 1 < len(self.groups):
            self.shards.read_ahead(self.indices[self.groups[number + 1]].tolist())
        slots, flags = self.groups[number], self.layout.flags(block)
        for slot, image in zip(slots.tolist(), self.decode(self.indices[slots]), strict=True):
            if image is not None and image.shape[:2] == tuple(self.layout.shapes[slot]):
                self.layout.image(block, slot).copy_(image)
                flags[slot] = 1
        return len(slots)


class DecodedCache:
    """Decoded images in one block of memory: of the machine, shared by its processes, or of this process's GPU.

    An image's slot is its position in ``indices``.

    Attributes:
        indices: ``(n,)`` int64 indices of the images that were asked for, ascending.
        num_bytes: size of the block.
    """

    def __init__(
        self,
        shards: ShardReader,
        indices: np.ndarray,
        *,
        device: torch.device,
        decode: DecodeWhole,
        decoder_name: str,
        group_size: int,
        mapping: Callable[..., Iterable[int]],
        on_progress: ProgressCallback,
    ) -> None:
        """Decodes the images, or finds them decoded by another process of this machine.

        Args:
            shards: the opened split.
            indices: ``(n,)`` int64 indices of the images, ascending, at least one.
            device: device of the block.
            decode: decodes images whole, exactly as batches are decoded; those that it cannot are left out, and
                treated in batches as bad ones always are.
            decoder_name: name of ``decode``: pixels are shared only among processes with the same.
            group_size: images that are decoded at a time.
            mapping: ``map``, or that of a pool whose threads are to decode.
            on_progress: called with the number of images that are done, and of all.

        Raises:
            InputError: there is not as much memory.
        """
        self.indices = indices
        entries = shards.index.entries[indices]
        self._layout = _Layout.of_entries(entries)
        self.num_bytes = block_bytes(entries)
        self._shared: SharedMemory | None = None
        in_file_order = np.lexsort((entries["offset"], entries["shard"]))
        fill = _Filler(
            shards=shards,
            indices=indices,
            layout=self._layout,
            groups=np.array_split(in_file_order, -(-len(indices) // group_size)),
            decode=decode,
            mapping=mapping,
        )
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what PyTorch keeps for later would count as used
            require_room(len(indices), self.num_bytes, torch.cuda.mem_get_info(device)[0], "the GPU")
            self._block = torch.empty(self.num_bytes, dtype=torch.uint8, device=device)
            fill(self._block, on_progress)
        else:
            name = hashlib.sha256(f"{shards.manifest.fingerprint} {shards.split} {decoder_name}".encode())
            name.update(entries.tobytes())
            name.update(indices.tobytes())
            self._shared = SharedMemory(name.hexdigest()[:32], self.num_bytes, fill, on_progress)
            self._block = self._shared.data
        self._is_there = self._layout.flags(self._block).cpu().numpy().astype(bool)

    def __len__(self) -> int:
        return len(self.indices)

    def slots(self, indices: np.ndarray) -> np.ndarray:
        """``(B,)`` int64 slots of images; -1 for an image that is not there."""
        slots = np.minimum(np.searchsorted(self.indices, indices), len(self.indices) - 1)
        return np.where((self.indices[slots] == indices) & self._is_there[slots], slots, -1)

    def image(self, slot: int) -> torch.Tensor:
        """``(height, width, 3)`` uint8, a view of the block."""
        return self._layout.image(self._block, slot)

    def close(self) -> None:
        """Lets the memory go."""
        self._block = torch.empty(0, dtype=torch.uint8)
        self._is_there = np.zeros(len(self.indices), bool)
        if self._shared is not None:
            self._shared.close()


def _aligned(num_bytes: np.ndarray) -> np.ndarray:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
