"""A step's number to its Plan: which images this process has of it, and what is done to each."""

from dataclasses import dataclass

import numpy as np

from cbd_fast.loading.augment import Augmentation, Plan, make_plan
from cbd_fast.loading.bad_images import BadImages
from cbd_fast.loading.sampling.orders import Order
from cbd_fast.shards.reader import ShardReader


@dataclass(frozen=True, kw_only=True)
class BatchPlanner:
    """Plans of global steps.

    Attributes:
        shards: the opened split.
        order: from numbers of draws to indices of images.
        is_sequential: whether every image is drawn once, instead of for ever.
        augmentation: settings of crop, flip and colours.
        image_size: side of the model's input in pixels.
        seed: integer of 64 bits.
        batch_size: images of a step, those of all processes together.
        rank: number of this process.
        world_size: number of processes.
        bad: the images that are known to be bad: they are replaced, or left out of a sequence.
    """

    shards: ShardReader
    order: Order
    is_sequential: bool
    augmentation: Augmentation
    image_size: int
    seed: int
    batch_size: int
    rank: int
    world_size: int
    bad: BadImages

    def __call__(self, step: int) -> Plan:
        """Images, boxes, flips and colours of this process's part of a global step."""
        part_size = self.batch_size // self.world_size
        start, stop = self.rank * part_size, (self.rank + 1) * part_size
        if self.is_sequential:  # only as far as there are images
            stop = min(stop, len(self.shards) - step * self.batch_size)
        positions = np.arange(start, stop)
        indices = self.order(step * self.batch_size + positions)
        if self.bad.reasons and self.is_sequential:
            are_good = ~self.bad.are_in(indices)
            indices, positions = indices[are_good], positions[are_good]
        elif self.bad.reasons:
            indices = self.bad.replaced(indices)
        entries = self.shards.entries(indices)
        return make_plan(
            self.augmentation,
            indices=indices,
            sizes=np.stack([entries["height"], entries["width"]], axis=1),
            image_size=self.image_size,
            seed=self.seed,
            step=step,
            positions=positions,
        )
