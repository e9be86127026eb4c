from dataclasses import replace

import torch

from cbd_fast import Batch


def batch_of(num=3):
    return Batch(images=torch.zeros(num, 3, 2, 2), labels=torch.arange(num), ids=torch.arange(num) + 7, step=5)


def test_a_batch_unpacks_and_knows_its_length():
    batch = batch_of()
    images, labels = batch
    assert images is batch.images
    assert labels is batch.labels
    assert len(batch) == 3


def test_a_batch_moves_as_other_libraries_ask_for_it():
    moved = batch_of().to("meta", non_blocking=True)
    assert moved.images.device.type == moved.labels.device.type == "meta"
    assert (moved.ids.tolist(), moved.step) == ([7, 8, 9], 5)


def test_a_changed_copy():
    batch = batch_of()
    assert replace(batch, images=batch.images + 1).images.mean() == 1
    assert batch.images.mean() == 0
