"""A batch: what a Loader yields."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One process's part of a global batch, B images; it unpacks: ``images, labels = batch``.

    Attributes:
        images: ``(B, 3, image_size, image_size)`` float32 in channels-last memory, on the loader's device.
        labels: ``(B,)`` int64 numbers of classes, on the loader's device.
        ids: ``(B,)`` int64 indices of the images in the split, on the CPU.
        step: number of the global step.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    step: int

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter((self.images, self.labels))

    def to(self, device: str | torch.device, non_blocking: bool = False) -> "Batch":
        """The batch with images and labels on another device, as Lightning and Accelerate ask for it."""
        images, labels = (tensor.to(device, non_blocking=non_blocking) for tensor in self)
        return replace(self, images=images, labels=labels)
