"""Loader: exact sampling and augmentation from shards, decoded ahead of time on threads or by NVIDIA DALI.

    from cbd_fast import Loader

    loader = Loader("shards/digits_lt", split="train", sampling="class_balanced", batch_size=128, image_size=224)
    for epoch in range(90):
        for batch in loader:
            loss = criterion(model(batch.images), batch.labels)

Batch s is a function of the shards, the settings and s alone. Whatever runs ahead, in whatever order, changes nothing.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from cbd_fast.errors import InputError
from cbd_fast.loading.augment import Augmentation, Plan, make_plan
from cbd_fast.loading.bad_images import BadImages
from cbd_fast.loading.batch_decoder import DECODERS, BatchDecoder
from cbd_fast.loading.cache.decoded_cache import DecodedCache, choose_cached
from cbd_fast.loading.cache.shared_memory import Progress
from cbd_fast.loading.sampling.policies import POLICIES, Order, draw_fractions, make_order
from cbd_fast.loading.stats import LoaderStats, Recorder
from cbd_fast.processes import place_among_processes
from cbd_fast.shards.reader import ShardReader
from cbd_fast.system import num_cores, thread_pool

SAMPLINGS = (*POLICIES, "sequential")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One process's part of a global batch.

    Attributes:
        images: ``(B, 3, image_size, image_size)`` float32 in channels-last memory, on the loader's device.
        labels: ``(B,)`` int64, on the loader's device.
        ids: ``(B,)`` int64 on the CPU, the images as rows of the index.
        step: number of the global step.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    step: int

    def __len__(self) -> int:
        return len(self.labels)


class Loader:
    """Batches of a split of sharded images.

    Attributes:
        shards: the opened split, with its manifest and index.
        epoch: which pass ``for batch in loader`` makes next.
        decoder: ``dali`` or ``torch``.
        cache: the images that are kept decoded, if any.
    """

    def __init__(
        self,
        shards: str | Path,
        *,
        split: str = "train",
        sampling: str = "instance",
        batch_size: int = 128,
        image_size: int = 224,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        decoder: str = "auto",
        device: str | torch.device | None = None,
        num_threads: int | None = None,
        prefetch: int = 2,
        cache: float | None = None,
        cache_gb: float | None = None,
        cache_on_gpu: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        total_steps: int | None = None,
        max_bad_fraction: float = 0.01,
        on_bad_image: Callable[[str, str], None] | None = None,
        on_cache_fill: Progress | None = None,
    ) -> None:
        """Opens shards, starts threads and decodes cached images; batches are made when they are asked for.

        Args:
            shards: folder of shards.
            split: ``train``, ``val`` or ``test``.
            sampling: ``instance``, ``class_balanced``, ``square_root``, ``progressive``, or ``sequential``: every
                image once, in the order of the index, for evaluation.
            batch_size: images of all processes together in one step.
            image_size: side of the model's input in pixels.
            seed: of order and augmentation.
            augmentation: by default the paper's random resized crop and flip; its centre crop for ``sequential``.
            decoder: ``dali``, ``torch``, or ``auto``: DALI where it is installed.
            device: where batches are; by default the GPU where there is one.
            num_threads: that read and decode; by default one per core of this process's fraction of the machine.
            prefetch: batches that are prepared ahead of time.
            cache: fraction of the images, 0 to 1, that is decoded now and kept in memory: those that serve the most
                draws per byte, such as the rarest classes if sampling is class-balanced. Batches are the same with it
                and without; only where DALI decodes boxes on the CPU may their edges differ in the last bits.
            cache_gb: the same as a limit in 10**9 bytes; all processes of a machine share them.
            cache_on_gpu: keep them in each process's GPU memory instead; needs DALI on a GPU.
            rank: of this process; by default as torch.distributed or its launcher says, else 0.
            world_size: number of processes; likewise, else 1.
            total_steps: of the whole run; only ``sampling="progressive"`` needs it.
            max_bad_fraction: of the split's images; more bad ones in this process are an error (one alone never is).
            on_bad_image: called once with place and reason of each image that cannot be decoded, from any thread.
            on_cache_fill: told how many cached images of how many are decoded; by default a bar on a terminal.

        Raises:
            InputError: shards or settings cannot be used.
        """
        self.shards = ShardReader(shards, split)
        self.rank, self.world_size = place_among_processes(rank, world_size)
        self._check(sampling, batch_size, image_size, decoder, prefetch)
        self.sampling, self.batch_size, self.image_size, self.seed = sampling, batch_size, image_size, seed
        self.is_sequential = sampling == "sequential"
        self.augmentation = augmentation or Augmentation(crop="center" if self.is_sequential else "random_resized_crop")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.epoch = 0
        self._bad = BadImages(self.shards, max_bad_fraction, on_bad_image)
        self._recorder = Recorder()
        self._order: Order | None = None
        if not self.is_sequential:
            num_draws = total_steps * batch_size if total_steps else None
            self._order = make_order(sampling, self.shards.index.starts, seed, num_draws)
        num_threads = num_threads or num_cores()
        self._pool = thread_pool(num_threads)
        self._prefetch = prefetch
        self._ahead = ThreadPoolExecutor(prefetch, thread_name_prefix="cbd-batch")
        self._own: Any = threading.local()  # each thread's stream of the GPU: one batch does not wait for the other
        self._decode_batch = BatchDecoder(
            self.shards,
            self._pool,
            num_threads=num_threads,
            batch_size=batch_size // self.world_size,
            image_size=image_size,
            device=self.device,
            decoder=decoder,
            allow_padding=self.augmentation.allow_padding,
            prefetch=prefetch,
            recorder=self._recorder,
        )
        self.decoder = self._decode_batch.decoder_name
        self.cache: DecodedCache | None = None
        if cache or cache_gb:
            fractions = draw_fractions(sampling, self.shards.index.starts)
            try:
                rows = choose_cached(
                    self.shards.index.rows, fractions, fraction=cache or None, gigabytes=cache_gb or None
                )
                self.cache = self._decode_batch.keep(rows, on_gpu=cache_on_gpu, on_cache_fill=on_cache_fill)
            except BaseException:
                self.close()
                raise

    @property
    def bad_images(self) -> dict[int, str]:
        """Rows that could not be decoded or are quarantined, with the reason.

        Each is replaced by the next image of its class (left out with ``sampling="sequential"``).
        """
        return self._bad.reasons

    def stats(self) -> LoaderStats:
        """What this loader has done so far, and where the time went."""
        return self._recorder.stats()

    def __len__(self) -> int:
        """Steps of one pass: whole batches in training, all images with ``sequential``."""
        num_images = len(self.shards)
        if self.is_sequential:
            return -(-num_images // self.batch_size)
        return max(1, num_images // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """One pass over as many images as the split has; the next one goes on where it ended."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        first = 0 if self.is_sequential else epoch * len(self)
        return self.steps(first, first + len(self))

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads and closes the shards; batches that are being made are finished first."""
        self._ahead.shutdown(cancel_futures=True)
        self._pool.shutdown()
        self._decode_batch.close()
        self.shards.close()

    def steps(self, first: int, end: int) -> Iterator[Batch]:
        """Batches of the global steps ``first`` up to, not including, ``end``, prepared ahead of time.

        Any step may be the first one: a resumed run calls ``steps(last_step + 1, ...)`` and loses nothing.
        """
        pending: deque[Future[tuple[Batch, torch.cuda.Event | None]]] = deque()
        upcoming = iter(range(first, end))
        try:
            while True:
                while len(pending) < self._prefetch and (step := next(upcoming, None)) is not None:
                    pending.append(self._ahead.submit(self._make, step))
                if not pending:
                    return
                with self._recorder.timing("waiting"):
                    batch, made = pending.popleft().result()
                if made is not None:
                    # the training stream waits for the batch, this thread does not
                    stream = torch.cuda.current_stream(self.device)
                    stream.wait_event(made)
                    batch.images.record_stream(stream)
                    batch.labels.record_stream(stream)
                yield batch
        finally:
            for future in pending:
                future.cancel()

    def batch(self, step: int) -> Batch:
        """The batch of one global step, ready to use."""
        return next(self.steps(step, step + 1))

    def plan(self, step: int) -> Plan:
        """Which images, boxes, flips and colours this process's part of a global step has."""
        positions = self._positions(step)
        draws = step * self.batch_size + positions
        rows = draws if self._order is None else self._order(draws)
        if self.bad_images and self.is_sequential:
            kept = ~self._bad.are_in(rows)
            rows, positions = rows[kept], positions[kept]
        elif self.bad_images:
            rows = self._bad.replaced(rows)
        places = self.shards.places(rows)
        return make_plan(
            self.augmentation,
            rows=rows,
            sizes=np.stack([places["height"], places["width"]], axis=1),
            image_size=self.image_size,
            seed=self.seed,
            step=step,
            positions=positions,
        )

    def _positions(self, step: int) -> np.ndarray:
        """Places in the global batch: the r-th slice for rank r; with ``sequential`` only as far as images go."""
        fraction = self.batch_size // self.world_size
        first, end = self.rank * fraction, (self.rank + 1) * fraction
        if self.is_sequential:
            end = min(end, len(self.shards) - step * self.batch_size)
        return np.arange(first, end)

    def _make(self, step: int) -> tuple[Batch, torch.cuda.Event | None]:
        """Makes a batch on a stream of this thread's own; the event says when it is there."""
        if self.device.type != "cuda":
            return self._finished(step), None
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self.device)
        with torch.cuda.device(self.device), torch.cuda.stream(self._own.stream):
            return self._finished(step), self._own.stream.record_event()

    def _finished(self, step: int) -> Batch:
        plan, images = self._images(step)
        labels = self.shards.index.labels(plan.rows)
        return Batch(
            images=images,
            labels=torch.from_numpy(labels).to(self.device, non_blocking=True),
            ids=torch.from_numpy(plan.rows),
            step=step,
        )

    def _images(self, step: int) -> tuple[Plan, torch.Tensor]:
        """Plan and finished images of a step, planned again without what turns out to be bad until nothing does."""
        while True:
            with self._recorder.timing("planning"):
                plan = self.plan(step)
            images, bad = self._decode_batch(plan)
            if not bad:
                self._recorder.add("num_batches", 1)
                self._recorder.add("num_images", len(plan))
                self._recorder.add("num_cached", self._decode_batch.num_cached(plan.rows))
                return plan, images
            self._bad.remember({int(plan.rows[position]): reason for position, reason in bad.items()})

    def _check(self, sampling: str, batch_size: int, image_size: int, decoder: str, prefetch: int) -> None:
        for name, value, allowed in (("sampling", sampling, SAMPLINGS), ("decoder", decoder, DECODERS)):
            if value not in allowed:
                raise InputError(f"{name}={value!r}: must be one of {', '.join(allowed)}")
        for name, number in (("batch_size", batch_size), ("image_size", image_size), ("prefetch", prefetch)):
            if number < 1:
                raise InputError(f"{name}={number}: must be at least 1")
        if batch_size % self.world_size:
            raise InputError(
                f"batch_size={batch_size}: must be a multiple of the {self.world_size} processes, which share it"
            )
