"""A Plan to finished images on the device: read, decoded, cut, resized, flipped, coloured."""

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from cbd_fast.loading.augment import Plan
from cbd_fast.loading.cache.buffer_pool import BufferPool
from cbd_fast.loading.cache.decoded_cache import DecodedCache, require_possible
from cbd_fast.loading.cache.shared_memory import Progress
from cbd_fast.loading.decoding.dali_decoder import DaliDecoder
from cbd_fast.loading.decoding.torch_decoder import Decoder, Source, TorchDecoder
from cbd_fast.loading.stats import Recorder
from cbd_fast.loading.tensor_transforms import finish
from cbd_fast.shards.reader import ShardReader
from cbd_fast.system import num_cores_of_all, thread_pool
from cbd_fast.ui.console import bar_of

DECODERS = ("auto", "dali", "torch")
MAX_GROUP_SIZE = 32  # images that a thread decodes at a time

Mapping = Callable[..., Iterable[Any]]  # `map`, or that of a pool


class BatchDecoder:
    """Makes the images of a batch; may be called from several threads."""

    def __init__(
        self,
        shards: ShardReader,
        pool: Executor,
        *,
        num_threads: int,
        batch_size: int,
        image_size: int,
        device: torch.device,
        decoder: str,
        allow_padding: bool,
        prefetch: int,
        recorder: Recorder,
    ) -> None:
        """Builds the decoder.

        Args:
            shards: of the images.
            pool: whose threads read and decode.
            num_threads: of the pool.
            batch_size: most images of a plan.
            image_size: side of the model's input in pixels.
            device: where the images are to be.
            decoder: one of ``DECODERS``.
            allow_padding: whether boxes may reach over the images' edges.
            prefetch: batches that are made at a time.
            recorder: told how long reading, decoding and finishing take.

        Raises:
            InputError: DALI was asked for and cannot be used.
        """
        self._shards, self._pool, self._image_size, self._device = shards, pool, image_size, device
        self._recorder = recorder
        self._cache: DecodedCache | None = None
        has_dali = decoder == "dali" or (decoder == "auto" and _dali_is_installed())
        self.decoder_name = "dali" if has_dali else "torch"
        self.decodes_on_gpu = has_dali and device.type == "cuda"
        # two groups per thread and batch, so that threads end together; small enough for the processor's cache
        self._group_size = min(MAX_GROUP_SIZE, -(-batch_size // (num_threads * 2)))
        if self.decodes_on_gpu:
            self._group_size = batch_size
        self._memory = BufferPool(max_free=prefetch + 1)
        self._decode: Decoder = TorchDecoder(image_size)
        if has_dali:
            self._decode = DaliDecoder(
                self._decode,
                device=device,
                batch_size=self._group_size,
                image_size=image_size,
                allow_padding=allow_padding,
                num_threads=num_threads if self.decodes_on_gpu else 1,
            )

    def keep(self, rows: np.ndarray, *, on_gpu: bool, on_cache_fill: Progress | None) -> DecodedCache:
        """Decodes images once, or finds them decoded by another process of this machine, and keeps them.

        Args:
            rows: ``(n,)`` int64, ascending.
            on_gpu: whether to keep them in this process's GPU memory, not in the machine's.
            on_cache_fill: told how many images of how many are decoded; by default a bar on a terminal.

        Raises:
            InputError: no rows, less memory than they need, or nothing is decoded on a GPU.
        """
        require_possible(rows, on_gpu=on_gpu, decodes_on_gpu=self.decodes_on_gpu)
        where = self._device if on_gpu else torch.device("cpu")
        with bar_of("cached images", on_cache_fill) as on_progress:
            self._cache = self._filled(rows, where, on_progress)
        return self._cache

    def _filled(self, rows: np.ndarray, where: torch.device, on_progress: Progress) -> DecodedCache:
        def fill(mapping: Mapping) -> DecodedCache:
            return DecodedCache(
                self._shards,
                rows,
                device=where,
                decode=self._decode_whole,
                decoder_name=f"{self.decoder_name} on {self._device.type}",
                group_size=self._group_size,
                mapping=mapping,
                on_progress=on_progress,
            )

        if self.decodes_on_gpu:
            return fill(map)
        # one process fills while the others of this machine wait for it: their cores are free
        with thread_pool(num_cores_of_all()) as pool:
            return fill(pool.map)

    def __call__(self, plan: Plan) -> tuple[torch.Tensor, dict[int, str]]:
        """Makes the images of a plan.

        Returns:
            ``(B, 3, image_size, image_size)`` float32 in channels-last memory, and positions that cannot be read or
            decoded, with the reason; if there are any, the images mean nothing.
        """
        if not len(plan):
            return torch.empty((0, 3, self._image_size, self._image_size), device=self._device), {}
        are_files = self._slots(plan.rows) < 0
        self._shards.read_ahead(plan.rows[are_files].tolist())
        return self._decode_at_once(plan) if self.decodes_on_gpu else self._decode_in_groups(plan)

    def close(self) -> None:
        """Lets cached images go."""
        if self._cache is not None:
            self._cache.close()

    def _decode_at_once(self, plan: Plan) -> tuple[torch.Tensor, dict[int, str]]:
        """The threads only read; the GPU does the rest."""
        with self._recorder.timing("reading"):
            sources, bad = self._sources(plan.rows, self._pool.map)
        if bad:
            return torch.empty(0), bad
        with self._recorder.timing("decoding"):
            crops = self._decode(sources, plan)
        if crops.bad:
            return torch.empty(0), crops.bad
        with self._recorder.timing("finishing"):
            return finish(crops.pixels, plan), {}

    def _decode_in_groups(self, plan: Plan) -> tuple[torch.Tensor, dict[int, str]]:
        """Each thread reads, decodes and finishes some images at a time, while they are in its processor's cache."""
        shape = (len(plan), self._image_size, self._image_size, 3)
        on_cpu = self._device.type == "cpu"
        out = (
            self._memory.take(shape, torch.float32)
            if on_cpu
            else torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        )

        def make(first: int) -> dict[int, str]:
            places = slice(first, min(first + self._group_size, len(plan)))
            part = plan.take(np.arange(places.start, places.stop))
            with self._recorder.timing("reading"):
                sources, bad = self._sources(part.rows, map)
            if not bad:
                with self._recorder.timing("decoding"):
                    crops = self._decode(sources, part)
                bad = crops.bad
            if not bad:
                with self._recorder.timing("finishing"):
                    if on_cpu:
                        finish(crops.pixels, part, out[places])
                    else:
                        out[places] = crops.pixels
            return {first + position: reason for position, reason in bad.items()}

        bad: dict[int, str] = {}
        for found in self._pool.map(make, range(0, len(plan), self._group_size)):
            bad |= found
        if on_cpu or bad:
            return out.permute(0, 3, 1, 2), bad
        return finish(out.to(self._device, non_blocking=True), plan), bad

    def num_cached(self, rows: np.ndarray) -> int:
        """How many of ``(B,)`` rows are kept decoded."""
        return int(np.count_nonzero(self._slots(rows) >= 0))

    def _slots(self, rows: np.ndarray) -> np.ndarray:
        """``(B,)`` places of cached images; -1 for those that are to be read."""
        return np.full(len(rows), -1) if self._cache is None else self._cache.slots(rows)

    def _sources(self, rows: np.ndarray, mapping: Mapping) -> tuple[list[Source], dict[int, str]]:
        """Files, or cached images, and which positions cannot be read, with the reason."""

        def source(row: int, slot: int) -> Source | OSError:
            if slot >= 0:
                assert self._cache is not None
                return self._cache.image(slot)
            try:
                return self._shards.read(row)
            except OSError as error:
                return error

        found = list(mapping(source, rows.tolist(), self._slots(rows).tolist()))
        bad = {position: str(error) for position, error in enumerate(found) if isinstance(error, OSError)}
        return [source for source in found if not isinstance(source, OSError)], bad

    def _decode_whole(self, rows: np.ndarray) -> list[torch.Tensor | None]:
        """Images of rows; None for those that cannot be read or decoded, which batches will tell of."""
        files, bad = self._sources(rows, map)
        good = np.array([position for position in range(len(rows)) if position not in bad], int)
        images: list[torch.Tensor | None] = [None] * len(rows)
        if len(good):
            places = self._shards.places(rows[good])
            sizes = np.stack([places["height"], places["width"]], axis=1).astype(np.int64)
            encoded = [file for file in files if isinstance(file, np.ndarray)]
            for position, image in zip(good, self._decode.whole(encoded, sizes), strict=True):
                images[position] = image if isinstance(image, torch.Tensor) else None
        return images


def _dali_is_installed() -> bool:
    with suppress(ModuleNotFoundError):  # not even the package that it would be in
        return find_spec("nvidia.dali") is not None
    return False
