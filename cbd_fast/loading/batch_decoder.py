"""From a Plan to the model's input on the device: read, decode, cut, resize, flip, colour."""

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from cbd_fast.loading.augment import Plan
from cbd_fast.loading.cache.buffer_pool import BufferPool
from cbd_fast.loading.cache.decoded_cache import DecodedCache, choose_cached, require_possible
from cbd_fast.loading.cache.shared_memory import ProgressCallback
from cbd_fast.loading.decoding.base import Decoder, EncodedOrDecoded
from cbd_fast.loading.decoding.dali_decoder import DaliDecoder
from cbd_fast.loading.decoding.torch_decoder import TorchDecoder
from cbd_fast.loading.stats import Recorder
from cbd_fast.loading.tensor_transforms import to_model_input
from cbd_fast.resources import num_cores_of_all
from cbd_fast.shards.image_header import check_image_size
from cbd_fast.shards.reader import ShardReader
from cbd_fast.system import thread_pool
from cbd_fast.ui.console import bar_of

DECODERS = ("auto", "dali", "torch")
MAX_GROUP_SIZE = 32  # images that a thread decodes at a time

Mapping = Callable[..., Iterable[Any]]  # `map`, or that of a pool


class BatchDecoder:
    """The images of a batch, made from files and cached images; may be called from several threads.

    Attributes:
        decoder_name: ``dali`` or ``torch``.
        decodes_on_gpu: whether DALI decodes on a GPU.
    """

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
            shards: the opened split; only its ``read``, ``read_ahead`` and, for the cache, its index are used.
            pool: threads that read and decode.
            num_threads: number of threads in the pool.
            batch_size: most images of a plan.
            image_size: side of the model's input in pixels.
            device: device of the images that are made.
            decoder: one of ``DECODERS``.
            allow_padding: whether boxes may reach over the images' edges.
            prefetch: batches that are made at a time.
            recorder: gets the times of reading, decoding and finishing.

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
        self._drop_unused: Callable[[], None] = lambda: None
        if has_dali:
            dali = DaliDecoder(
                self._decode,
                device=device,
                batch_size=self._group_size,
                image_size=image_size,
                allow_padding=allow_padding,
                num_threads=num_threads if self.decodes_on_gpu else 1,
            )
            self._decode, self._drop_unused = dali, dali.drop_unused

    def fill_cache(
        self,
        draw_fractions: np.ndarray,
        *,
        fraction: float | None,
        gigabytes: float | None,
        on_gpu: bool,
        on_cache_fill: ProgressCallback | None,
    ) -> DecodedCache:
        """Decodes the best images once, or finds them decoded by another process of this machine, and keeps them.

        Args:
            draw_fractions: ``(num_classes,)`` fraction of all draws that falls on each image of a class.
            fraction: limit as a fraction of the images, 0 to 1; None for none.
            gigabytes: limit of the memory in 10**9 bytes; None for none.
            on_gpu: whether to keep them in this process's GPU memory, not in the machine's.
            on_cache_fill: called with the number of images that are decoded, and of all; by default a bar on a
                terminal.

        Raises:
            InputError: impossible limits, less memory than the images need, or nothing is decoded on a GPU.
        """
        entries = self._shards.index.entries
        indices = choose_cached(entries, draw_fractions, fraction=fraction, gigabytes=gigabytes)
        require_possible(indices, on_gpu=on_gpu, decodes_on_gpu=self.decodes_on_gpu)
        with ExitStack() as stack:
            mapping: Mapping = map
            if not self.decodes_on_gpu:
                # one process fills while the others of this machine wait for it: their cores are free
                mapping = stack.enter_context(thread_pool(num_cores_of_all())).map
            self._cache = DecodedCache(
                self._shards,
                indices,
                device=self._device if on_gpu else torch.device("cpu"),
                decode=self._decode_whole,
                decoder_name=f"{self.decoder_name} on {self._device.type}",
                group_size=self._group_size,
                mapping=mapping,
                on_progress=stack.enter_context(bar_of("cached images", on_cache_fill)),
            )
        self._drop_unused()
        return self._cache

    def __call__(self, plan: Plan) -> tuple[torch.Tensor, dict[int, str]]:
        """The images of a plan.

        Returns:
            ``(B, 3, image_size, image_size)`` float32 in channels-last memory, and reasons by position in the plan
            for images that cannot be read or decoded; if there are any, the pixels mean nothing.
        """
        if not len(plan):
            return torch.empty((0, 3, self._image_size, self._image_size), device=self._device), {}
        are_files = self._slots(plan.indices) < 0
        self._shards.read_ahead(plan.indices[are_files].tolist())
        return self._decode_at_once(plan) if self.decodes_on_gpu else self._decode_in_groups(plan)

    def close(self) -> None:
        """Lets the cached images go, and what threads had that have ended."""
        self._drop_unused()
        if self._cache is not None:
            self._cache.close()

    def _decode_at_once(self, plan: Plan) -> tuple[torch.Tensor, dict[int, str]]:
        """The threads only read; the GPU does the rest."""
        with self._recorder.timing("reading"):
            images, bad = self._read(plan.indices, plan.sizes, self._pool.map)
        if bad:
            return torch.empty(0), bad
        with self._recorder.timing("decoding"):
            crops = self._decode(images, plan)
        if crops.bad:
            return torch.empty(0), crops.bad
        with self._recorder.timing("finishing"):
            return to_model_input(crops.pixels, plan), {}

    def _decode_in_groups(self, plan: Plan) -> tuple[torch.Tensor, dict[int, str]]:
        """Each thread reads, decodes and finishes some images at a time, while they are in its processor's cache."""
        shape = (len(plan), self._image_size, self._image_size, 3)
        on_cpu = self._device.type == "cpu"
        out = (
            self._memory.take(shape, torch.float32)
            if on_cpu
            else torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        )

        def make_group(start: int) -> dict[int, str]:
            group = slice(start, min(start + self._group_size, len(plan)))
            part = plan.take(np.arange(group.start, group.stop))
            with self._recorder.timing("reading"):
                images, bad = self._read(part.indices, part.sizes, map)
            if not bad:
                with self._recorder.timing("decoding"):
                    crops = self._decode(images, part)
                bad = crops.bad
            if not bad:
                with self._recorder.timing("finishing"):
                    if on_cpu:
                        to_model_input(crops.pixels, part, out[group])
                    else:
                        out[group] = crops.pixels
            return {start + position: reason for position, reason in bad.items()}

        bad: dict[int, str] = {}
        for bad_of_group in self._pool.map(make_group, range(0, len(plan), self._group_size)):
            bad |= bad_of_group
        if on_cpu or bad:
            return out.permute(0, 3, 1, 2), bad
        return to_model_input(out.to(self._device, non_blocking=True), plan), bad

    def num_cached(self, indices: np.ndarray) -> int:
        """Number of images, of those with the given ``(B,)`` indices, that are kept decoded."""
        return int(np.count_nonzero(self._slots(indices) >= 0))

    def _slots(self, indices: np.ndarray) -> np.ndarray:
        """``(B,)`` slots of images in the cache; -1 for those that are to be read."""
        return np.full(len(indices), -1) if self._cache is None else self._cache.slots(indices)

    def _read(
        self, indices: np.ndarray, sizes: np.ndarray, mapping: Mapping
    ) -> tuple[list[EncodedOrDecoded], dict[int, str]]:
        """Files, or cached images; and reasons by position for those that cannot be used, which are left out.

        No decoder takes memory for another size than was indexed: what a file says itself is compared here.
        """

        def read_one(index: int, slot: int, size: list[int]) -> EncodedOrDecoded | str:
            if slot >= 0:
                assert self._cache is not None
                return self._cache.image(slot)
            try:
                file = self._shards.read(index)
                if isinstance(file, np.ndarray):  # or pixels, as users may give them to a Predictor
                    check_image_size(file.data, *size)
            except (OSError, ValueError) as error:
                return str(error)
            return file

        images = list(mapping(read_one, indices.tolist(), self._slots(indices).tolist(), sizes.tolist()))
        bad = {position: reason for position, reason in enumerate(images) if isinstance(reason, str)}
        return [image for image in images if not isinstance(image, str)], bad

    def _decode_whole(self, indices: np.ndarray) -> list[torch.Tensor | None]:
        """Whole images; None for those that cannot be read or decoded, which are reported when batches need them."""
        entries = self._shards.entries(indices)
        sizes = np.stack([entries["height"], entries["width"]], axis=1).astype(np.int64)
        images, bad = self._read(indices, sizes, map)
        files = [image for image in images if isinstance(image, np.ndarray)]
        whole: list[torch.Tensor | None] = [None] * len(indices)
        if files:
            good = [position for position in range(len(indices)) if position not in bad]
            for position, image in zip(good, self._decode.whole(files, sizes[good]), strict=True):
                whole[position] = image if isinstance(image, torch.Tensor) else None
        return whole


def _dali_is_installed() -> bool:
    with suppress(ModuleNotFoundError):  # not even the package that it would be in
        return find_spec("nvidia.dali") is not None
    return False
