"""Images that are kept decoded in memory: those that are drawn most often for the memory that they take.

Class-balanced sampling draws an image of a rare class over and over. Kept decoded, it costs a cut and a resize instead
of a read and a whole decoding, and its crops are the same.
"""

import hashlib
from collections.abc import Callable, Iterable

import numpy as np
import torch

from cbd_fast.errors import InputError
from cbd_fast.loading.cache.shared_memory import Progress, SharedMemory
from cbd_fast.shards.reader import ShardReader
from cbd_fast.system import available_bytes

NUM_PASSES = 20  # over what is left; the room that remains is then less than a few images
ALIGNMENT = 64  # bytes; an image begins on a line of the processor's cache

# row numbers to images, (height, width, 3) uint8, or None where there is none
DecodeWhole = Callable[[np.ndarray], list[torch.Tensor | None]]


def choose_cached(
    rows: np.ndarray, draw_fractions: np.ndarray, *, fraction: float | None = None, gigabytes: float | None = None
) -> np.ndarray:
    """The images that serve the most draws per byte: a greedy choice, best first, until the limit.

    Args:
        rows: the index.
        draw_fractions: ``(num_classes,)`` fraction of all draws that falls on each image of a class.
        fraction: of the images, 0 to 1; or
        gigabytes: of memory, in units of 10**9 bytes.

    Returns:
        ``(n,)`` int64 rows, ascending.

    Raises:
        InputError: both limits or an impossible one.
    """
    if fraction is not None and gigabytes is not None:
        raise InputError(f"cache={fraction:g} and cache_gb={gigabytes:g}: set one of them")
    if fraction is not None and not 0 <= fraction <= 1:
        raise InputError(f"cache={fraction:g}: must be from 0 to 1, a fraction of the images")
    if gigabytes is not None and not gigabytes >= 0:
        raise InputError(f"cache_gb={gigabytes:g}: must be 0 or more")
    num_bytes = image_bytes(rows)
    usable = num_bytes > 0  # quarantined images have no size
    # float32 is enough to compare by, and half the memory
    value = np.zeros(len(rows), np.float32)
    np.divide(draw_fractions[rows["label"]], num_bytes, out=value, where=usable, casting="same_kind")
    best_first = np.argsort(-value, kind="stable")[: np.count_nonzero(usable)]
    if fraction is not None:
        return np.sort(best_first[: int(fraction * len(rows))])
    return np.sort(_first_that_fit(best_first, _aligned(num_bytes) + 1, int((gigabytes or 0) * 10**9)))


def _first_that_fit(candidates: np.ndarray, num_bytes: np.ndarray, room: int) -> np.ndarray:
    """Takes candidates in their order as long as they fit, passing over those that are too large by then."""
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


def image_bytes(rows: np.ndarray) -> np.ndarray:
    """``(n,)`` int64, decoded size of each image of the index."""
    return rows["width"].astype(np.int64) * rows["height"] * 3


def block_bytes(rows: np.ndarray) -> int:
    """What keeping these images of the index takes: their pixels, and for each whether it is there."""
    return int(_aligned(image_bytes(rows)).sum()) + len(rows)


def require_possible(rows: np.ndarray, *, on_gpu: bool, decodes_on_gpu: bool) -> None:
    """Refuses images that cannot be kept.

    Raises:
        InputError: no rows, or they are to be kept on a GPU where nothing is decoded on one.
    """
    if on_gpu and not decodes_on_gpu:
        raise InputError(
            "cache_on_gpu: images are not decoded on a GPU here, so there they would be of no use; it needs a "
            "GPU and decoder=dali"
        )
    if not len(rows):
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


class DecodedCache:
    """Decoded images in one block of memory: of the machine, shared by its processes, or of this process's GPU.

    Attributes:
        rows: ``(n,)`` int64, the images that were asked for, ascending.
        num_bytes: of the block.
    """

    def __init__(
        self,
        shards: ShardReader,
        rows: np.ndarray,
        *,
        device: torch.device,
        decode: DecodeWhole,
        decoder_name: str,
        group_size: int,
        mapping: Callable[..., Iterable[int]],
        on_progress: Progress,
    ) -> None:
        """Decodes the images, or finds them decoded by another process of this machine.

        Args:
            shards: of the images.
            rows: ``(n,)`` int64, ascending, at least one.
            device: where the block is to be.
            decode: decodes images whole, exactly as batches are decoded; those that it cannot are left out, and
                treated in batches as bad ones always are.
            decoder_name: what ``decode`` is: its pixels are shared only with the same.
            group_size: images that are decoded at a time.
            mapping: ``map``, or that of a pool whose threads are to decode.
            on_progress: told how many images of how many are done.

        Raises:
            InputError: there is not as much memory.
        """
        self.rows = rows
        places = shards.index.rows[rows]
        self._shapes = np.stack([places["height"], places["width"]], axis=1).astype(np.int64)
        ends = np.cumsum(_aligned(image_bytes(places)))
        self._offsets = np.concatenate([[0], ends])
        # behind the images one byte for each: whether it is there
        self.num_bytes = block_bytes(places)
        self._shared: SharedMemory | None = None
        in_file_order = np.lexsort((places["offset"], places["shard"]))
        groups = np.array_split(in_file_order, -(-len(rows) // group_size))

        def fill(data: torch.Tensor, on_progress: Progress) -> None:
            """Decodes all images into the block."""
            if data.device.type == "cpu":
                require_room(len(rows), self.num_bytes, available_bytes(), "this machine")
            is_there = data[int(ends[-1]) :]
            is_there.zero_()

            def fill_group(number: int) -> int:
                if number + 1 < len(groups):
                    shards.read_ahead(rows[groups[number + 1]].tolist())
                slots = groups[number]
                for slot, image in zip(slots.tolist(), decode(rows[slots]), strict=True):
                    if image is not None and image.shape[:2] == tuple(self._shapes[slot]):
                        self._view(data, slot).copy_(image)
                        is_there[slot] = 1
                return len(slots)

            num_done = 0
            on_progress(num_done, len(rows))
            for num_filled in mapping(fill_group, range(len(groups))):
                num_done += num_filled
                on_progress(num_done, len(rows))

        if device.type == "cuda":
            torch.cuda.empty_cache()  # what PyTorch keeps for later would count as used
            require_room(len(rows), self.num_bytes, torch.cuda.mem_get_info(device)[0], "the GPU")
            data = torch.empty(self.num_bytes, dtype=torch.uint8, device=device)
            fill(data, on_progress)
        else:
            name = hashlib.sha256(f"{shards.manifest.fingerprint} {shards.split} {decoder_name}".encode())
            name.update(places.tobytes())
            name.update(rows.tobytes())
            self._shared = SharedMemory(name.hexdigest()[:32], self.num_bytes, fill, on_progress)
            data = self._shared.data
        self._is_there = data[int(ends[-1]) :].cpu().numpy().astype(bool)
        self._data = data

    def __len__(self) -> int:
        return len(self.rows)

    def slots(self, rows: np.ndarray) -> np.ndarray:
        """``(B,)`` rows of the index to ``(B,)`` places in the block; -1 where an image is not in it."""
        slots = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.where((self.rows[slots] == rows) & self._is_there[slots], slots, -1)

    def image(self, slot: int) -> torch.Tensor:
        """``(height, width, 3)`` uint8, a view of the block."""
        return self._view(self._data, slot)

    def close(self) -> None:
        """Lets the memory go."""
        self._data = torch.empty(0, dtype=torch.uint8)
        self._is_there = np.zeros(len(self.rows), bool)
        if self._shared is not None:
            self._shared.close()

    def _view(self, data: torch.Tensor, slot: int) -> torch.Tensor:
        height, width = self._shapes[slot].tolist()
        first = int(self._offsets[slot])
        return data[first : first + height * width * 3].view(height, width, 3)


def _aligned(num_bytes: np.ndarray) -> np.ndarray:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
