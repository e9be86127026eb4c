"""A Plan to finished pictures on the device: read, decoded, cut, resized, flipped, coloured."""

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from cbd_fast.loading.augment import Plan
from cbd_fast.loading.decode_dali import DaliDecoder
from cbd_fast.loading.decode_torch import Decoder, TorchDecoder
from cbd_fast.loading.finish import finish
from cbd_fast.loading.memory import BatchMemory
from cbd_fast.sharding.shard_set import ShardSet

DECODERS = ("auto", "dali", "torch")
MAX_GROUP_SIZE = 32  # pictures that a thread decodes at a time


class ImageMaker:
    """Makes the pictures of a batch; may be called from several threads."""

    def __init__(
        self,
        shards: ShardSet,
        pool: Executor,
        *,
        num_threads: int,
        batch_size: int,
        image_size: int,
        device: torch.device,
        decoder: str,
        pads: bool,
        prefetch: int,
    ) -> None:
        """Builds the decoder.

        Args:
            shards: of the pictures.
            pool: whose threads read and decode.
            num_threads: of the pool.
            batch_size: most pictures of a plan.
            image_size: side of the model's input in pixels.
            device: where the pictures are to be.
            decoder: one of ``DECODERS``.
            pads: whether boxes may reach over the pictures' edges.
            prefetch: batches that are made at a time.

        Raises:
            InputError: DALI was asked for and cannot be used.
        """
        self._shards, self._pool, self._image_size, self._device = shards, pool, image_size, device
        has_dali = decoder == "dali" or (decoder == "auto" and _dali_is_installed())
        self._decodes_on_gpu = has_dali and device.type == "cuda"
        # two groups per thread and batch, so that threads end together; small enough for the processor's cache
        self._group_size = min(MAX_GROUP_SIZE, -(-batch_size // (num_threads * 2)))
        self._memory = BatchMemory(max_free=prefetch + 1)
        self._decode: Decoder = TorchDecoder(image_size)
        if has_dali:
            self._decode = DaliDecoder(
                self._decode,
                device=device,
                batch_size=batch_size if self._decodes_on_gpu else self._group_size,
                image_size=image_size,
                pads=pads,
                num_threads=num_threads if self._decodes_on_gpu else 1,
            )

    def __call__(self, plan: Plan) -> tuple[torch.Tensor, dict[int, str]]:
        """Makes the pictures of a plan.

        Returns:
            ``(B, 3, image_size, image_size)`` float32 in channels-last memory, and positions that cannot be read or
            decoded, with the reason; if there are any, the pictures mean nothing.
        """
        if not len(plan):
            return torch.empty((0, 3, self._image_size, self._image_size), device=self._device), {}
        self._shards.read_ahead(plan.rows.tolist())
        return self._decode_at_once(plan) if self._decodes_on_gpu else self._decode_in_groups(plan)

    def _decode_at_once(self, plan: Plan) -> tuple[torch.Tensor, dict[int, str]]:
        """The threads only read; the GPU does the rest."""
        encoded, bad = self._read(plan, self._pool.map)
        if bad:
            return torch.empty(0), bad
        crops = self._decode(encoded, plan)
        return (torch.empty(0), crops.bad) if crops.bad else (finish(crops.pixels, plan), {})

    def _decode_in_groups(self, plan: Plan) -> tuple[torch.Tensor, dict[int, str]]:
        """Each thread reads, decodes and finishes some pictures at a time, while they are in its processor's cache."""
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
            encoded, bad = self._read(part, map)
            if not bad:
                crops = self._decode(encoded, part)
                bad = crops.bad
            if not bad and on_cpu:
                finish(crops.pixels, part, out[places])
            elif not bad:
                out[places] = crops.pixels
            return {first + position: reason for position, reason in bad.items()}

        bad: dict[int, str] = {}
        for found in self._pool.map(make, range(0, len(plan), self._group_size)):
            bad |= found
        if on_cpu or bad:
            return out.permute(0, 3, 1, 2), bad
        return finish(out.to(self._device, non_blocking=True), plan), bad

    def _read(self, plan: Plan, mapping: Callable[..., Iterable[Any]]) -> tuple[list[np.ndarray], dict[int, str]]:
        """The files of some pictures, and which positions cannot be read, with the reason."""

        def read(row: int) -> np.ndarray | OSError:
            try:
                return self._shards.read(row)
            except OSError as error:
                return error

        files = list(mapping(read, plan.rows.tolist()))
        bad = {position: str(file) for position, file in enumerate(files) if isinstance(file, OSError)}
        return [file for file in files if isinstance(file, np.ndarray)], bad


def _dali_is_installed() -> bool:
    with suppress(ModuleNotFoundError):  # not even the package that it would be in
        return find_spec("nvidia.dali") is not None
    return False
