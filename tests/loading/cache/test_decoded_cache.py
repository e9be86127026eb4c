import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cbd_fast import Augmentation, Loader
from cbd_fast.errors import InputError
from cbd_fast.loading.cache import decoded_cache
from cbd_fast.loading.cache.decoded_cache import choose_cached, image_bytes
from cbd_fast.loading.sampling.policies import draw_fractions
from cbd_fast.registry import SAMPLING
from cbd_fast.shards.index import INDEX_DTYPE
from tests.helpers import OPTIONS, same, with_bad_images

PLACES_LT = Path(__file__).parents[3] / "benchmarks" / "places_lt_counts.json"


def entries_of(counts, sizes):
    entries = np.zeros(sum(counts), INDEX_DTYPE)
    entries["label"] = np.repeat(np.arange(len(counts)), counts)
    entries["height"], entries["width"] = np.array(sizes).T
    return entries


def starts_of(counts):
    return np.concatenate([[0], np.cumsum(counts)])


def test_the_rarest_and_smallest_are_chosen():
    # classes of 4, 2 and 1 images; a draw of the second falls on one of 2 images, of which one is twice as large
    entries = entries_of([4, 2, 1], [(10, 10)] * 4 + [(10, 20), (10, 10)] + [(30, 10)])
    fractions = draw_fractions("class_balanced", starts_of([4, 2, 1]))
    np.testing.assert_allclose(fractions, [1 / 12, 1 / 6, 1 / 3])
    # draws per byte, times 3600: 1, 1, 1, 1, 1, 2, 1.33
    assert choose_cached(entries, fractions, fraction=1 / 7).tolist() == [5]
    assert choose_cached(entries, fractions, fraction=2 / 7).tolist() == [5, 6]
    assert choose_cached(entries, fractions, fraction=1).tolist() == list(range(7))
    assert choose_cached(entries, fractions, gigabytes=321e-9).tolist() == [
        5
    ]  # 300 bytes on whole lines of 64, and one more
    assert choose_cached(entries, fractions, gigabytes=(321 + 961 + 321) * 1e-9).tolist() == [0, 5, 6]
    assert choose_cached(entries, fractions, gigabytes=320e-9).tolist() == []


def test_what_does_not_fit_is_passed_over():
    # the best per byte is too large for what is left after the next one, and for all when there is little room
    entries = entries_of([1, 4], [(100, 100)] + [(10, 10)] * 4)
    fractions = draw_fractions("class_balanced", starts_of([1, 4])) * np.array([100, 1])
    one, small = 30_016 + 1, 320 + 1
    assert choose_cached(entries, fractions, gigabytes=(one + small) * 1e-9).tolist() == [0, 1]
    assert choose_cached(entries, fractions, gigabytes=(one - 1) * 1e-9).tolist() == [1, 2, 3, 4]


def test_quarantined_images_are_never_chosen():
    entries = entries_of([2, 2], [(10, 10)] * 3 + [(0, 0)])
    assert choose_cached(entries, draw_fractions("instance", starts_of([2, 2])), fraction=1).tolist() == [0, 1, 2]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any),
    st.sampled_from([*SAMPLING, "sequential"]),
    st.floats(0, 1),
    st.randoms(use_true_random=False),
)
def test_no_other_choice_of_as_many_serves_more_per_byte(counts, policy, fraction, random):
    entries = entries_of(counts, [(random.randint(1, 50), random.randint(1, 50)) for _ in range(sum(counts))])
    fractions = draw_fractions(policy, starts_of(counts))
    assert (fractions * counts).sum() == pytest.approx(1)
    chosen = choose_cached(entries, fractions, fraction=fraction)
    assert len(chosen) == int(fraction * len(entries))
    value = (fractions[entries["label"]] / image_bytes(entries)).astype(np.float32)
    others = np.setdiff1d(np.arange(len(entries)), chosen)
    assert not len(chosen) or not len(others) or value[chosen].min() >= value[others].max()


def test_a_fifth_of_places_lt_serves_seven_tenths_of_the_draws():
    counts = json.loads(PLACES_LT.read_text())["counts"]
    assert (sum(counts), len(counts), max(counts), min(counts)) == (62500, 365, 4980, 5)
    fractions = draw_fractions("class_balanced", starts_of(counts))
    entries = entries_of(counts, [(256, 340)] * sum(counts))
    by_worth = np.sort(np.repeat(1 / np.array(counts) / 365, counts))[::-1]
    for fraction, served in ((0.05, 0.39), (0.1, 0.53), (0.2, 0.70), (0.3, 0.80)):
        chosen = choose_cached(entries, fractions, fraction=fraction)
        assert fractions[entries["label"][chosen]].sum() == pytest.approx(by_worth[: int(fraction * 62500)].sum())
        assert fractions[entries["label"][chosen]].sum() == pytest.approx(served, abs=0.01)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"cache": 0.5, "cache_gb": 1}, "cache=0.5 and cache_gb=1: set one"),
        ({"cache": 1.5}, "cache=1.5: must be from 0 to 1"),
        ({"cache_gb": -1}, "cache_gb=-1: must be 0 or more"),
        ({"cache_gb": 1e-6}, "no room for a single image"),
        ({"cache": 1, "cache_on_gpu": True}, "cache_on_gpu: images are not decoded on a GPU"),
    ],
)
def test_impossible_settings_are_refused(photo_shards, limits, message):
    with pytest.raises(InputError, match=message):
        Loader(photo_shards, **OPTIONS, **limits)


def test_too_little_memory_is_refused_with_numbers(photo_shards, monkeypatch):
    monkeypatch.setattr(decoded_cache, "available_bytes", lambda: 100_000)
    with pytest.raises(InputError, match=r"19 cached images need 0\.000\d+ GB, but this machine has only 0.0001 GB"):
        Loader(photo_shards, cache=1, **OPTIONS)


AUGMENTATIONS = {
    "random_resized_crop": Augmentation(color_jitter=1.0),
    "pad_and_crop": Augmentation(crop="pad_and_crop", padding=8),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("decoder", ["torch", "dali"])
@pytest.mark.parametrize("fraction", [0.4, 1.0])
def test_batches_are_the_same_with_and_without(photo_shards, decoder, fraction, name):
    options = OPTIONS | {"decoder": decoder, "sampling": "class_balanced", "augmentation": AUGMENTATIONS[name]}
    with Loader(photo_shards, **options) as plain, Loader(photo_shards, cache=fraction, **options) as kept:
        assert len(kept.cache) == int(fraction * 19)
        for expected, batch in zip(plain.steps(0, 12), kept.steps(0, 12), strict=True):
            if decoder == "torch" or name == "pad_and_crop":
                assert same(expected, batch)
            else:  # DALI decodes boxes, whose edges may differ in the last bits
                assert batch.ids.tolist() == expected.ids.tolist()
                assert (batch.images - expected.images).abs().max() <= 4.5 / 255 * 5  # colours times up to 5
        drawn = np.isin(np.concatenate([plain.plan(step).indices for step in range(12)]), kept.cache.indices)
        assert kept.stats().num_cached == drawn.sum()
        assert plain.stats().num_cached == 0


def test_evaluation_can_be_cached_too(photo_shards):
    options = OPTIONS | {"decoder": "torch", "split": "test", "sampling": "sequential"}
    with Loader(photo_shards, **options) as plain, Loader(photo_shards, cache_gb=1, **options) as kept:
        assert all(same(a, b) for a, b in zip(plain, kept, strict=True))
        assert kept.stats().num_cached == len(kept.shards) == 6


@pytest.mark.parametrize("decoder", ["torch", "dali"])
def test_bad_images_are_treated_as_ever(photo_shards, tmp_path, decoder):
    copy, bad = with_bad_images(photo_shards, tmp_path, 2)
    options = OPTIONS | {"decoder": decoder, "sampling": "class_balanced", "max_bad_fraction": 0.2}
    with Loader(copy, **options) as plain, Loader(copy, cache=1, **options) as kept:
        for expected, batch in zip(plain.steps(0, 12), kept.steps(0, 12), strict=True):
            assert batch.ids.tolist() == expected.ids.tolist()
            assert (batch.images - expected.images).abs().max() <= (0 if decoder == "torch" else 4.5 / 255)
        assert sorted(kept.bad_images) == sorted(plain.bad_images) == bad
        assert kept.stats().num_cached == kept.stats().num_images  # each is counted once, however often planned


def test_filling_is_reported(photo_shards):
    reported = []
    with Loader(photo_shards, cache=1, on_cache_fill=lambda done, total: reported.append((done, total)), **OPTIONS):
        assert reported[0] == (0, 19)
        assert reported[-1] == (19, 19)
        assert reported == sorted(reported)


def test_processes_of_a_machine_share_one_block(photo_shards):
    program = f"""
import os, sys
from cbd_fast import Loader

filled = []
loader = Loader({str(photo_shards)!r}, **{OPTIONS!r}, decoder="torch", sampling="class_balanced", cache=1,
                on_cache_fill=lambda done, total: filled.append(done))
print(loader.cache._shared.is_mine, bool(filled), loader.batch(3).images.double().sum().item(), flush=True)
sys.stdin.read()  # keeps the block until the others have been there
"""
    start = [sys.executable, "-c", program]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(start, **pipes) for _ in range(3)]
    lines = [process.stdout.readline().split() for process in processes]
    for process in processes:
        process.communicate()
    assert sorted(is_mine for is_mine, *_ in lines) == ["False", "False", "True"]
    assert [filled for is_mine, filled, _ in lines if is_mine == "True"] == ["True"]
    with Loader(photo_shards, **OPTIONS, decoder="torch", sampling="class_balanced") as plain:
        assert {float(total) for *_, total in lines} == {plain.batch(3).images.double().sum().item()}


@pytest.mark.gpu
@pytest.mark.parametrize("on_gpu", [False, True])
def test_on_a_gpu_batches_are_the_same_with_and_without(photo_shards, on_gpu):
    options = OPTIONS | {"device": "cuda", "decoder": "dali", "sampling": "class_balanced"}
    with (
        Loader(photo_shards, **options) as plain,
        Loader(photo_shards, cache=0.4, cache_on_gpu=on_gpu, **options) as kept,
    ):
        for expected, batch in zip(plain.steps(0, 12), kept.steps(0, 12), strict=True):
            assert batch.ids.tolist() == expected.ids.tolist()
            assert torch.equal(batch.images, expected.images)
