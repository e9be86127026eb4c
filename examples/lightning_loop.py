"""The loader in Lightning: a LightningModule whose training batches come from a Loader.

    pip install lightning
    python examples/lightning_loop.py shards/digits_lt

The loader gives each process its own part of every batch, so Lightning adds no sampler. It has ``state_dict`` and
``load_state_dict``, so Lightning's checkpoints hold its state, and a run that goes on from one gets the next batch.

Run on 2026-11-25 with lightning 2.6.6 and torch 2.15.0 on a CPU.
"""

import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from cbd_fast import Augmentation, Batch, Loader


class Classifier(LightningModule):
    """A linear classifier of small images."""

    def __init__(self, shards: str) -> None:
        super().__init__()
        self.shards = shards
        self.model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
        self.steps: list[int] = []

    def train_dataloader(self) -> Loader:
        """Called when the processes have joined, so the loader knows its rank."""
        return Loader(
            self.shards,
            sampling="class_balanced",
            batch_size=64,  # of all processes together
            image_size=32,
            augmentation=Augmentation(crop="pad_and_crop", flip=False),
            device=self.device,
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        images, labels = batch
        self.steps.append(batch.step)
        loss = F.cross_entropy(self.model(images), labels)
        self.log("loss", loss, batch_size=len(batch))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.5)


def main(shards: str) -> float:
    """Trains in two runs, of which the second goes on in the middle of an epoch; returns the last loss."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"use_distributed_sampler": False, "logger": False, "enable_checkpointing": False}
        checkpoint = Path(folder) / "half.ckpt"
        trainer = Trainer(max_steps=18, default_root_dir=folder, **options)
        trainer.fit(first := Classifier(shards))
        trainer.save_checkpoint(checkpoint)
        trainer = Trainer(max_steps=60, default_root_dir=folder, **options)
        trainer.fit(second := Classifier(shards), ckpt_path=checkpoint)
    assert first.steps + second.steps == list(range(60))
    loss = float(trainer.callback_metrics["loss"])
    print(f"loss {loss:.3f} after {len(first.steps)} + {len(second.steps)} steps")
    return loss


if __name__ == "__main__":
    main(sys.argv[1])
