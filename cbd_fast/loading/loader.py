"""Loader: exact sampling and augmentation from shards, decoded ahead of time on threads or by NVIDIA DALI.

Batch s is a function of the shards, the settings and s alone. Whatever runs ahead, in whatever order, changes nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch

from cbd_fast.loading.augment import Augmentation, Plan
from cbd_fast.loading.bad_images import BadImages
from cbd_fast.loading.batch import Batch
from cbd_fast.loading.batch_decoder import BatchDecoder
from cbd_fast.loading.batch_maker import BatchMaker
from cbd_fast.loading.batch_planner import BatchPlanner
from cbd_fast.loading.cache.decoded_cache import DecodedCache
from cbd_fast.loading.cache.shared_memory import ProgressCallback
from cbd_fast.loading.forks import OwnProcess
from cbd_fast.loading.loader_checks import check_settings
from cbd_fast.loading.loader_state import EpochPass, read_state
from cbd_fast.loading.prefetcher import Prefetcher
from cbd_fast.loading.sampling.policies import SEQUENTIAL, draw_fractions, make_order
from cbd_fast.loading.stats import LoaderStats, Recorder
from cbd_fast.processes import place_among_processes
from cbd_fast.resources import num_cores
from cbd_fast.shards.reader import ShardReader
from cbd_fast.system import choose_device, thread_pool


class Loader:
    """Batches of a split of sharded images.

    A plain loop::

        with Loader("shards/digits_lt", sampling="class_balanced", batch_size=128) as loader:
            for epoch in range(90):
                for images, labels in loader:
                    loss = criterion(model(images), labels)

    With Accelerate; each process's loader yields its own part of every batch, so it is not passed to ``prepare``::

        model, optimizer = accelerator.prepare(model, optimizer)
        loader = Loader("shards/digits_lt", sampling="class_balanced", device=accelerator.device)
        for images, labels in loader:
            accelerator.backward(criterion(model(images), labels))

    With Lightning, whose checkpoints then hold the loader's state too (examples/lightning_loop.py)::

        class Classifier(LightningModule):
            def train_dataloader(self):  # called when the processes have joined
                return Loader("shards/digits_lt", sampling="class_balanced", device=self.device)

    Attributes:
        shards: the opened split, with its manifest and index.
        epoch: number of the pass that the next ``for images, labels in loader`` makes, from 0.
        decoder: ``dali`` or ``torch``.
        cache: the images that are kept decoded; None without a cache.

    Args:
        shards: folder of shards.
        split: ``train``, ``val`` or ``test``, if the shards have it.
        sampling: name of a policy in ``cbd_fast.SAMPLING`` (``instance``, ``class_balanced``, ``square_root``,
            ``progressive``, or one of your own), or ``sequential``: every image once, in the order of the index.
        batch_size: images of a step, those of all processes together.
        image_size: side of the model's input in pixels.
        seed: integer of 64 bits, of order and augmentation.
        augmentation: by default the paper's random resized crop and flip; its centre crop for ``sequential``.
        transform: function from a ``Batch`` to a ``Batch`` (``dataclasses.replace(batch, images=...)``), such as
            mixing images. It is called on the device, without gradients, from threads that prepare batches ahead; to be
            resumable it must depend on the batch alone, whose ``step`` can seed it.
        decoder: ``dali``, ``torch``, or ``auto``: DALI where it is installed.
        device: device of the batches; by default the GPU where there is one.
        num_threads: threads that read and decode; by default one for each core that this process may use, shared with
            the other processes of a launcher.
        prefetch: batches that are prepared ahead of time.
        cache: fraction of the images, 0 to 1, that is decoded now and kept in memory: those that serve the most
            draws per byte, such as the rarest classes if sampling is class-balanced. Batches are the same with it
            and without; only where DALI decodes boxes on the CPU may their edges differ in the last bits.
        cache_gb: the same as a limit in 10**9 bytes, which all processes of a machine share; only one of the two.
        cache_on_gpu: whether each process keeps the cache in its GPU's memory instead; needs DALI on a GPU.
        rank: number of this process; by default as torch.distributed or its launcher says, else 0.
        world_size: number of processes; by default as torch.distributed or its launcher says, else 1.
        total_steps: steps of the whole run; of our policies only ``progressive`` needs it.
        max_bad_fraction: fraction of the split's images, 0 to 1; more bad ones in this process are an error, but a
            single one never is.
        on_bad_image: called once with name and reason of each image that cannot be decoded, from any thread.
        on_cache_fill: called with the number of cached images that are decoded, and of all; by default a bar on a
            terminal.

    Raises:
        InputError: shards or settings cannot be used.
    """

    _pass: EpochPass | None = None  # None between two epochs

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
        transform: Callable[[Batch], Batch] | None = None,
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
        on_cache_fill: ProgressCallback | None = None,
    ) -> None:
        self.shards = ShardReader(shards, split)
        self.rank, self.world_size = place_among_processes(rank, world_size)
        num_threads = num_cores() if num_threads is None else num_threads
        counts = {"image_size": image_size, "prefetch": prefetch, "num_threads": num_threads}
        check_settings(
            sampling, decoder, max_bad_fraction, batch_size, self.world_size, counts | {"total_steps": total_steps}
        )
        self.sampling, self.batch_size, self.image_size, self.seed = sampling, batch_size, image_size, seed
        self.total_steps, self.is_sequential = total_steps, sampling == SEQUENTIAL
        self._num_draws = total_steps and total_steps * batch_size
        self.augmentation = augmentation or Augmentation(crop="center" if self.is_sequential else "random_resized_crop")
        self.device = choose_device(device)
        self.epoch, self._is_resumed = 0, False
        self._process, self._recorder = OwnProcess("Loader"), Recorder()
        self._bad = BadImages(self.shards, max_bad_fraction, on_bad_image)
        self._order = make_order(sampling, self.shards.index.starts, seed, self._num_draws)
        self._pool = thread_pool(num_threads)
        self._prefetcher = Prefetcher(prefetch, self.device, self._recorder, self._process)
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
        self._plan = self._make_planner()
        self._make = BatchMaker(self._plan, self._decode_batch, transform, self.device, self._recorder, self._process)
        limits = {"fraction": cache or None, "gigabytes": cache_gb or None}
        self.cache = self._fill_cache(limits, cache_on_gpu, on_cache_fill) if cache or cache_gb else None

    @property
    def bad_images(self) -> dict[int, str]:
        """Reasons, by index, for images that could not be decoded or are quarantined.

        Each is replaced by the next image of its class (left out with ``sampling="sequential"``).
        """
        return self._bad.reasons

    def stats(self) -> LoaderStats:
        """What this loader has done so far, and where the time went."""
        return self._recorder.stats()

    def __len__(self) -> int:
        """Steps of an epoch: whole batches in training, all images with ``sequential``."""
        num_images = len(self.shards)
        return -(-num_images // self.batch_size) if self.is_sequential else max(1, num_images // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """One epoch, or the rest of one after ``load_state_dict``; the next epoch goes on where it ended."""
        # all this happens with the first batch: some libraries ask for iterators that they never use
        current = self._pass if self._pass and self._is_resumed else EpochPass(epoch=self.epoch)
        self._pass = current
        self._is_resumed, self.epoch = False, current.epoch + 1
        start = 0 if self.is_sequential else current.epoch * len(self)
        for batch in self.steps(start + current.num_yielded, start + len(self)):
            current.num_yielded += 1
            yield batch
        if self._pass is current:
            self._pass = None

    def state_dict(self) -> dict[str, Any]:
        """Where the last ``for images, labels in loader`` is, as torchdata's ``StatefulDataLoader`` has it.

        It counts the batches that the loop's body was given, not those that are prepared ahead. When the loop has
        ended, it is the start of the next epoch. It is the same on all processes, and can be written as JSON.
        """
        return {**self._order_settings(), **asdict(self._pass or EpochPass(epoch=self.epoch))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next ``for images, labels in loader`` go on with exactly the next batch.

        Of a state from the body of an epoch's last batch, the rest of the epoch is empty. World size, decoder, threads,
        prefetch, cache and image size may be others than those of the loader that ``state_dict`` is from.

        Raises:
            InputError: other shards, split, sampling, seed, batch_size or total_steps; or no state of a loader.
        """
        loaded = read_state(state, self._order_settings(), len(self))
        self._pass, self.epoch, self._is_resumed = loaded, loaded.epoch, True

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Loader cannot be copied or sent to another process, as its threads cannot; open one there with the "
            "same arguments"
        )

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads and closes the shards; batches that are being made are finished first.

        In a forked child it does nothing: threads and shards are the parent's.
        """
        if not self._process:
            return
        self._prefetcher.close()
        self._pool.shutdown()
        self._decode_batch.close()
        self.shards.close()

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of the global steps ``start`` up to, not including, ``stop``, prepared ahead of time.

        Any step may be the first one: a resumed run calls ``steps(last_step + 1, ...)`` and loses nothing. What
        ``state_dict`` returns does not change.
        """
        return self._prefetcher.batches(self._make, start, stop)

    def batch(self, step: int) -> Batch:
        """The batch of one global step, ready to use."""
        return next(self.steps(step, step + 1))

    def plan(self, step: int) -> Plan:
        """Images, boxes, flips and colours of this process's part of a global step."""
        return self._plan(step)

    def _make_planner(self) -> BatchPlanner:
        return BatchPlanner(
            shards=self.shards,
            order=self._order,
            is_sequential=self.is_sequential,
            augmentation=self.augmentation,
            image_size=self.image_size,
            seed=self.seed,
            batch_size=self.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            bad=self._bad,
        )

    def _order_settings(self) -> dict[str, Any]:
        """All that the order of images depends on."""
        return {
            "shards": self.shards.manifest.fingerprint,
            "split": self.shards.split,
            "sampling": self.sampling,
            "seed": int(self.seed),
            "batch_size": self.batch_size,
            "total_steps": self.total_steps,
        }

    def _fill_cache(self, limits: Any, on_gpu: bool, on_cache_fill: ProgressCallback | None) -> DecodedCache:
        try:
            fractions = draw_fractions(self.sampling, self.shards.index.starts, self._num_draws)
            return self._decode_batch.fill_cache(fractions, **limits, on_gpu=on_gpu, on_cache_fill=on_cache_fill)
        except BaseException:
            self.close()
            raise
