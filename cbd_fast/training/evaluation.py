"""Exact evaluation over a whole split, with any number of processes."""

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from cbd_fast.errors import RunError, printable
from cbd_fast.loading.loader import Loader
from cbd_fast.training.metrics import Predictions
from cbd_fast.training.models import CosineModel
from cbd_fast.training.stopping import Stops

NUM_GUESSES = 5  # that are kept of each image
NUM_NAMED = 3  # images in a message


class NotFiniteError(RunError):
    """A model whose outputs are NaN or infinite, for some images at least."""


def predict_split(
    model: CosineModel, loader: Loader, accelerator: Accelerator, stops: Stops | None = None
) -> Predictions:
    """Runs a model in eval mode over every image of a sequential loader once.

    Args:
        model: not wrapped, on the loader's device, alike on all processes; fastest ``optimized_for_inference``.
        loader: a loader with ``sampling="sequential"``, for this process's part.
        accelerator: joins the processes.
        stops: says when all processes stop.

    Returns:
        The guesses on all images, on every process.

    Raises:
        NotFiniteError: a logit is NaN or infinite; on all processes.
        Stopped: a signal came; on all processes after the same batch.
    """
    num_guesses = min(NUM_GUESSES, loader.shards.num_classes)
    # labels and guesses as one tensor of integers, so that the processes exchange two things, not one for each batch
    integers: list[Tensor] = []
    probabilities: list[Tensor] = []
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in (stops or Stops()).interrupting(loader):
            logits = model(batch.images).logits
            guesses = logits.topk(num_guesses, dim=1).indices
            indices = batch.ids.to(loader.device, non_blocking=True)
            are_finite = logits.isfinite().all(dim=1, keepdim=True)
            integers.append(torch.cat([indices[:, None], batch.labels[:, None], are_finite, guesses], dim=1))
            probabilities.append(logits.softmax(dim=1).gather(1, guesses))
    model.train(was_training)
    empty = torch.empty((0, num_guesses), device=loader.device)
    no_integers = torch.empty((0, 3 + num_guesses), dtype=torch.int64, device=loader.device)
    whole = _of_all_processes(torch.cat([no_integers, *integers]), accelerator)
    chances = _of_all_processes(torch.cat([empty, *probabilities]), accelerator)
    if len(bad := np.sort(whole[whole[:, 2] == 0, 0])):
        names = ", ".join(printable(loader.shards.name(int(index))) for index in bad[:NUM_NAMED])
        raise NotFiniteError(
            f"the outputs for {len(bad)} of {len(whole)} images of the {loader.shards.split} split are not finite, "
            f"such as those for {names},"
        )
    order = np.argsort(whole[:, 0], kind="stable")
    return Predictions(
        indices=whole[order, 0],
        labels=whole[order, 1],
        guesses=whole[order, 3:],
        probabilities=chances[order],
        train_counts=loader.shards.train_counts,
    )


def _of_all_processes(values: Tensor, accelerator: Accelerator) -> np.ndarray:
    """``(n, ...)`` values of this process, whose n may differ, to those of all processes together."""
    if accelerator.num_processes > 1:
        count = torch.tensor([len(values)], device=values.device)
        counts = accelerator.gather(count).tolist()
        padded = accelerator.gather(accelerator.pad_across_processes(values))
        values = torch.cat([part[:number] for part, number in zip(padded.split(max(counts)), counts, strict=True)])
    return values.cpu().numpy()
