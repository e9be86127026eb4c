"""A step's number to its batch: planned, decoded, planned again without what turns out to be bad, transformed."""

from collections.abc import Callable

import torch

from cbd_fast.errors import InputError
from cbd_fast.loading.augment import Plan
from cbd_fast.loading.batch import Batch
from cbd_fast.loading.batch_decoder import BatchDecoder
from cbd_fast.loading.batch_planner import BatchPlanner
from cbd_fast.loading.forks import OwnProcess
from cbd_fast.loading.stats import Recorder


class BatchMaker:
    """Makes batches; may be called from several threads."""

    def __init__(
        self,
        plan: BatchPlanner,
        decode: BatchDecoder,
        transform: Callable[[Batch], Batch] | None,
        device: torch.device,
        recorder: Recorder,
        process: OwnProcess,
    ) -> None:
        """Remembers what makes the parts of a batch.

        Args:
            plan: plans steps without the images that are known to be bad, of which it will know more.
            decode: makes the images of a plan.
            transform: the caller's function from a ``Batch`` to a ``Batch``.
            device: device of the batches.
            recorder: gets times and numbers of images.
            process: the process whose threads decode.
        """
        self._plan, self._decode, self._transform = plan, decode, transform
        self._device, self._recorder, self._process = device, recorder, process

    def __call__(self, step: int) -> Batch:
        """The batch of a global step.

        Raises:
            InputError: the caller's ``transform`` returned something else.
            RunError: too many images are bad.
        """
        plan, images = self._decode_good(step)
        labels = torch.from_numpy(self._plan.shards.index.labels(plan.indices)).to(self._device, non_blocking=True)
        batch = Batch(images=images, labels=labels, ids=torch.from_numpy(plan.indices), step=step)
        if self._transform is None:
            return batch
        with self._recorder.timing("finishing"), torch.no_grad():
            batch = self._transform(batch)
        if not isinstance(batch, Batch):
            raise InputError(f"transform: returned {type(batch).__name__}; must return a Batch (dataclasses.replace)")
        return batch

    def _decode_good(self, step: int) -> tuple[Plan, torch.Tensor]:
        """Plan and images of a step, planned again without what turns out to be bad until nothing does."""
        while True:
            self._process.require()  # what is called for a bad image may have forked
            with self._recorder.timing("planning"):
                plan = self._plan(step)
            images, bad = self._decode(plan)
            if not bad:
                self._recorder.add("num_batches", 1)
                self._recorder.add("num_images", len(plan))
                self._recorder.add("num_cached", self._decode.num_cached(plan.indices))
                return plan, images
            self._plan.bad.remember({int(plan.indices[position]): reason for position, reason in bad.items()})
