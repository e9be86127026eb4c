"""The loader in a loop of one's own, here with Accelerate, and with a new start after each epoch.

    python examples/balanced_loader.py shards/digits_lt
    accelerate launch examples/balanced_loader.py shards/digits_lt

The loss goes down although every class has a different number of images.
"""

import json
import sys

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from cbd_fast import Augmentation, Loader


def main(shards: str, epochs: int = 4) -> float:
    """Trains a linear classifier and returns its last loss."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.5))
    options = {
        "sampling": "class_balanced",
        "batch_size": 64,  # of all processes together: the loader gives each its own part, so it is not prepared
        "image_size": 32,
        "augmentation": Augmentation(crop="pad_and_crop", flip=False),
        "device": accelerator.device,
    }
    state, loss = None, torch.tensor(0.0)
    for _ in range(epochs):
        with Loader(shards, **options) as loader:  # as if every epoch was a new command
            if state is not None:
                loader.load_state_dict(json.loads(state))
            for images, labels in loader:
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
            state = json.dumps(loader.state_dict())
    accelerator.print(f"loss {loss.item():.3f} after {epochs} epochs of {len(loader)} batches")
    return loss.item()


if __name__ == "__main__":
    main(sys.argv[1])
