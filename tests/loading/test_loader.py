import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from cbd_fast import Augmentation, Loader
from cbd_fast.errors import InputError, RunError
from cbd_fast.loading import batch_decoder
from cbd_fast.registry import SAMPLING
from tests.helpers import OPTIONS, same, with_bad_images


@pytest.fixture
def make(photo_shards):
    """Makes loaders of the photographs and closes them in the end."""
    loaders = []

    def make(shards=photo_shards, **options):
        loaders.append(Loader(shards, **(OPTIONS | options)))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def test_a_batch(make):
    loader = make(sampling="class_balanced")
    batch = loader.batch(0)
    assert batch.images.shape == (6, 3, 32, 32)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.bincount(minlength=3).tolist() == [2, 2, 2]
    assert (batch.labels.dtype, batch.ids.dtype) == (torch.int64, torch.int64)
    assert batch.labels.tolist() == loader.shards.index.entries["label"][batch.ids.numpy()].tolist()


@pytest.mark.parametrize("decoder", ["torch", "dali"])
@pytest.mark.parametrize("sampling", SAMPLING)
def test_any_step_can_be_the_first(make, sampling, decoder):
    options = {"sampling": sampling, "decoder": decoder, "total_steps": 20}
    whole = list(make(**options).steps(0, 8))
    resumed = list(make(**options, prefetch=1, num_threads=1).steps(5, 8))
    assert all(same(a, b) for a, b in zip(whole[5:], resumed, strict=True))


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_a_global_batch(make, world_size):
    augmentation = Augmentation(color_jitter=1.0)
    whole = list(make(augmentation=augmentation).steps(0, 4))
    ranks = [make(augmentation=augmentation, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        parts = [loader.batch(step) for loader in ranks]
        assert torch.cat([part.ids for part in parts]).tolist() == batch.ids.tolist()
        torch.testing.assert_close(torch.cat([part.images for part in parts]), batch.images, atol=1e-6, rtol=0)
        boxes = np.concatenate([loader.plan(step).boxes for loader in ranks])
        np.testing.assert_array_equal(boxes, make(augmentation=augmentation).plan(step).boxes)


def test_passes_follow_one_another(make):
    loader, whole = make(), make()
    assert len(loader) == 3  # of 19 images in batches of 6
    batches = [*loader, *loader]
    assert [batch.step for batch in batches] == list(range(6))
    assert all(same(a, b) for a, b in zip(batches, whole.steps(0, 6), strict=True))


def test_instance_sampling_sees_every_image_once_in_so_many_draws(make):
    ids = torch.cat([batch.ids for batch in make(batch_size=19).steps(2, 3)])
    assert sorted(ids.tolist()) == list(range(19))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_sequential_is_exact_with_any_number_of_processes(make, world_size):
    seen = []
    for rank in range(world_size):
        loader = make(sampling="sequential", batch_size=8, rank=rank, world_size=world_size)
        assert len(loader) == 3
        for _ in range(2):  # every pass is the same
            ids = [index for batch in loader for index in batch.ids.tolist()]
        seen += ids
    assert sorted(seen) == list(range(19))


def test_test_images_are_centre_crops(make):
    loader = make(split="test", sampling="sequential")
    plan = loader.plan(0)
    sizes = loader.shards.index.entries[plan.indices][["height", "width"]].tolist()
    assert plan.boxes[:, 2].tolist() == [round(min(size) * 224 / 256) for size in sizes]
    assert not plan.flips.any()


def test_a_bare_loop_that_stops_early_leaves_no_threads(photo_shards):
    before = threading.active_count()
    with Loader(photo_shards, **OPTIONS) as loader:
        for _ in loader:
            break
    assert threading.active_count() == before


@pytest.mark.parametrize("decoder", ["torch", "dali"])
def test_a_bad_image_is_replaced_by_the_next_of_its_class(make, photo_shards, tmp_path, decoder):
    copy, bad = with_bad_images(photo_shards, tmp_path, 2)
    reported = []
    damaged = make(
        copy,
        sampling="class_balanced",
        decoder=decoder,
        max_bad_fraction=0.2,
        on_bad_image=lambda name, reason: reported.append((name, reason)),
    )
    whole = make(sampling="class_balanced", decoder=decoder)
    first = list(damaged.steps(0, 12))
    for batch, expected in zip(first, whole.steps(0, 12), strict=True):
        assert batch.labels.tolist() == expected.labels.tolist()
        expected_ids = [2 if index in bad else index for index in expected.ids.tolist()]
        assert batch.ids.tolist() == expected_ids
        kept = ~np.isin(expected.ids.numpy(), bad)
        assert torch.equal(batch.images[kept], expected.images[kept])
    assert sorted(damaged.bad_images) == bad
    assert sorted(name for name, _ in reported) == sorted(damaged.shards.name(index) for index in bad)
    assert all(reason for _, reason in reported)
    # what is known to be bad changes nothing any more
    assert [batch.ids.tolist() for batch in damaged.steps(0, 12)] == [batch.ids.tolist() for batch in first]


@pytest.mark.parametrize("decoder", ["torch", "dali"])
def test_an_image_that_only_the_decoder_refuses_is_replaced_too(make, photo_shards, tmp_path, decoder):
    copy, bad = with_bad_images(photo_shards, tmp_path, 1)
    damaged = make(copy, sampling="class_balanced", decoder=decoder)
    damaged.shards.read = trusting_read(damaged.shards)  # as if the crc32 were that of the damaged bytes
    for batch, expected in zip(damaged.steps(0, 12), make(sampling="class_balanced").steps(0, 12), strict=True):
        assert batch.ids.tolist() == [1 if index in bad else index for index in expected.ids.tolist()]
    assert sorted(damaged.bad_images) == bad


def trusting_read(shards):
    def read(index):
        entry = shards.index.entries[index]
        data = shards.paths[int(entry["shard"])].read_bytes()
        return np.frombuffer(data, np.uint8, int(entry["size"]), int(entry["offset"])).copy()

    return read


def test_a_bad_test_image_is_left_out(make, photo_shards, tmp_path):
    copy, bad = with_bad_images(photo_shards, tmp_path, 1, split="test", label=1)
    loader = make(copy, split="test", sampling="sequential")
    for _ in range(3):  # and no other one comes in its place when it is known
        assert sorted(index for batch in loader for index in batch.ids.tolist()) == sorted(set(range(6)) - set(bad))


def test_too_many_bad_images_are_an_error_that_names_them(make, photo_shards, tmp_path):
    copy, _ = with_bad_images(photo_shards, tmp_path, 3)
    loader = make(copy, sampling="class_balanced", max_bad_fraction=0.1)
    with pytest.raises(RunError, match="2 of 19 images cannot be decoded") as error:
        list(loader.steps(0, 12))
    assert "train-000000.tar:" in str(error.value)


def test_a_class_of_bad_images_alone_is_an_error(make, photo_shards, tmp_path):
    copy, _ = with_bad_images(photo_shards, tmp_path, 2, label=2)
    loader = make(copy, sampling="class_balanced", max_bad_fraction=0.5)
    with pytest.raises(RunError, match="no image of class 'cat' can be decoded"):
        list(loader.steps(0, 12))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "random"}, "sampling='random': must be one of"),
        ({"decoder": "pil"}, "decoder='pil': must be one of"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"batch_size": 7, "rank": 0, "world_size": 2}, "batch_size=7: must be a multiple of the 2 processes"),
        ({"rank": 2, "world_size": 2}, "rank=2: must be 0 or more and below world_size=2"),
        ({"sampling": "progressive"}, "needs the number of steps"),
        ({"split": "val"}, "no split 'val'"),
        ({"num_threads": 0}, "num_threads=0: must be at least 1"),
        ({"total_steps": 0}, "total_steps=0: must be at least 1"),
        ({"max_bad_fraction": 2}, "max_bad_fraction=2: must be from 0 to 1"),
        ({"device": "gpu"}, "device='gpu'"),
    ],
)
def test_impossible_settings_are_refused(make, options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_the_lines_of_the_readme(photo_shards):
    """In a fresh interpreter, with nothing but the package."""
    program = f"""
from cbd_fast import Loader

shards = {str(photo_shards)!r}
for batch in Loader(shards, split="train", sampling="class_balanced", batch_size=6, image_size=224, seed=0):
    print(batch.step, tuple(batch.images.shape), sorted(batch.labels.tolist()), len(batch.ids))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{step} (6, 3, 224, 224) [0, 0, 1, 1, 2, 2] 6" for step in range(3)]


@pytest.mark.gpu
@pytest.mark.parametrize("decoder", ["torch", "dali"])
def test_batches_on_the_gpu_are_those_of_the_cpu(make, decoder):
    on_cpu, on_gpu = make(sampling="class_balanced"), make(sampling="class_balanced", decoder=decoder, device="cuda")
    for expected, batch in zip(on_cpu.steps(0, 4), on_gpu.steps(0, 4), strict=True):
        assert batch.images.device.type == batch.labels.device.type == "cuda"
        assert batch.ids.tolist() == expected.ids.tolist()
        assert (batch.images.cpu() - expected.images).abs().mean() <= 2 / 255


def test_without_dali_torchvision_decodes(make, monkeypatch):
    def nothing(name):
        raise ModuleNotFoundError(name)

    expected = make(decoder="torch").batch(0)
    monkeypatch.setattr(batch_decoder, "find_spec", nothing)
    monkeypatch.setattr(batch_decoder, "DaliDecoder", None)
    assert same(make(decoder="auto").batch(0), expected)


def test_a_transform_is_called_with_every_batch(make):
    calls = []

    def mixed(batch):
        calls.append((batch.step, threading.current_thread() is threading.main_thread(), torch.is_grad_enabled()))
        return replace(batch, images=(batch.images + batch.images.flip(0)) / 2)

    plain, mixing = make(), make(transform=mixed)
    for expected, batch in zip(plain.steps(0, 4), mixing.steps(0, 4), strict=True):
        assert torch.equal(batch.images, (expected.images + expected.images.flip(0)) / 2)
        assert same(replace(batch, images=expected.images), expected)
    assert sorted(calls) == [(step, False, False) for step in range(4)]  # ahead of time, without gradients


def test_batches_are_transformed_ahead_of_time(make):
    is_second_made = threading.Event()

    def note(batch):
        if batch.step == 1:
            is_second_made.set()
        return batch

    batches = make(transform=note, prefetch=2).steps(0, 4)
    next(batches)
    assert is_second_made.wait(60)  # though nobody has asked for it


def test_a_transform_that_returns_no_batch_is_an_error(make):
    loader = make(transform=lambda batch: batch.images)
    with pytest.raises(InputError, match="transform: returned Tensor; must return a Batch"):
        loader.batch(0)


@pytest.mark.gpu
def test_a_transform_on_the_gpu_is_on_the_batchs_own_stream(make):
    streams = []

    def double(batch):
        streams.append(torch.cuda.current_stream())
        return replace(batch, images=batch.images * 2)

    plain, doubling = make(device="cuda"), make(device="cuda", transform=double)
    for expected, batch in zip(plain.steps(0, 4), doubling.steps(0, 4), strict=True):
        assert torch.equal(batch.images, expected.images * 2)
    assert torch.cuda.default_stream() not in streams
