import json
from itertools import chain, islice, repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbd_fast import Loader
from cbd_fast.errors import InputError
from cbd_fast.loading.loader_state import read_state

OPTIONS = {"batch_size": 6, "image_size": 8, "device": "cpu", "num_threads": 1, "decoder": "torch"}
NUM_STEPS = 3  # of an epoch: 19 images in batches of 6


def batches_of(loader, num):
    """The first batches of as many loops as they take."""
    return [(batch.step, batch.ids.tolist()) for batch in islice(chain.from_iterable(repeat(loader)), num)]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 3 * NUM_STEPS),
    st.integers(0, NUM_STEPS),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from(["class_balanced", "progressive"]),
)
def test_a_resumed_sequence_equals_the_uninterrupted_one(photo_shards, num_before, num_between, ahead, later, policy):
    """Stopped twice: after any number of batches, and soon after it went on."""
    options = {"sampling": policy, "total_steps": 100, **OPTIONS}
    with Loader(photo_shards, **options) as loader:
        expected = batches_of(loader, 4 * NUM_STEPS)
    with Loader(photo_shards, prefetch=ahead, **options) as loader:
        resumed = batches_of(loader, num_before)
        state = json.dumps(loader.state_dict())
    for num in (num_between, 4 * NUM_STEPS - num_before - num_between):
        with Loader(photo_shards, prefetch=later, **options) as loader:
            loader.load_state_dict(json.loads(state))
            assert loader.state_dict() == json.loads(state)
            resumed += batches_of(loader, num)
            state = json.dumps(loader.state_dict())
    assert resumed == expected


@pytest.mark.parametrize("sampling", ["class_balanced", "sequential"])
def test_a_state_of_the_middle_goes_on_in_the_middle(photo_shards, sampling):
    with Loader(photo_shards, sampling=sampling, **OPTIONS) as loader:
        whole = [batch.ids.tolist() for batch in loader]
        for number, _ in enumerate(loader):
            if number == 1:
                state = loader.state_dict()
                break
        assert (state["epoch"], state["num_yielded"]) == (1, 2)
        loader.load_state_dict(state)  # into the same loader too
        rest = [batch.ids.tolist() for batch in loader]
        assert len(rest) == len(loader) - 2
        assert loader.epoch == 2
        assert (loader.state_dict()["epoch"], loader.state_dict()["num_yielded"]) == (2, 0)
        if sampling == "sequential":
            assert rest == whole[2:]


def test_at_the_end_of_an_epoch_the_next_one_begins(photo_shards):
    with Loader(photo_shards, **OPTIONS) as loader:
        list(loader)
        state = loader.state_dict()
        expected = [batch.step for batch in loader]
        loader.load_state_dict(state)
        assert [batch.step for batch in loader] == expected == [3, 4, 5]


def test_after_the_last_batch_but_within_the_loop_the_rest_is_empty(photo_shards):
    """As torchdata has it: a script that stopped in epoch 0 goes on with the rest of epoch 0, then epoch 1."""
    with Loader(photo_shards, **OPTIONS) as loader:
        states = [loader.state_dict() for _ in loader]
        loader.load_state_dict(states[-1])
        assert [[batch.step for batch in loader] for _ in range(2)] == [[], [3, 4, 5]]


def test_steps_and_loops_that_were_left_do_not_change_the_state(photo_shards):
    with Loader(photo_shards, **OPTIONS) as loader:
        first = iter(loader)
        next(first)
        loader.batch(17)
        assert (loader.state_dict()["epoch"], loader.state_dict()["num_yielded"]) == (0, 1)
        second = iter(loader)
        assert next(second).step == 3
        next(first)
        assert (loader.state_dict()["epoch"], loader.state_dict()["num_yielded"]) == (1, 1)


def test_an_iterator_that_is_never_used_is_no_epoch(photo_shards):
    """Lightning asks for some before its first batch, with a state and without."""
    with Loader(photo_shards, **OPTIONS) as loader:
        iter(loader)
        assert next(iter(loader)).step == 0
        state = loader.state_dict()
        loader.load_state_dict(state)
        iter(loader)
        assert loader.state_dict() == state
        assert [batch.step for batch in loader] == [1, 2]


def test_the_number_of_processes_may_differ(photo_shards):
    with Loader(photo_shards, **OPTIONS) as loader:
        expected = [batch.ids.tolist() for batch in loader]
        next(iter(loader))
    parts = []
    for rank in range(2):
        with Loader(photo_shards, rank=rank, world_size=2, prefetch=3, **OPTIONS) as part:
            state = {**loader.state_dict(), "epoch": 0}
            part.load_state_dict(state)
            parts.append([batch.ids.tolist() for batch in part])
    assert [a + b for a, b in zip(*parts, strict=True)] == expected[1:]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"split": "test"}, "the state has split='train', the loader split='test'"),
        ({"sampling": "class_balanced"}, "the state has sampling='instance', the loader sampling='class_balanced'"),
        ({"seed": 3}, "the state has seed=0, the loader seed=3"),
        ({"batch_size": 3}, "the state has batch_size=6, the loader batch_size=3"),
        ({"total_steps": 9}, "the state has total_steps=None, the loader total_steps=9"),
    ],
)
def test_a_state_of_another_order_is_refused(photo_shards, changed, message):
    with Loader(photo_shards, **OPTIONS) as loader, Loader(photo_shards, **(OPTIONS | changed)) as other:
        with pytest.raises(InputError, match=message):
            other.load_state_dict(loader.state_dict())
        assert batches_of(other, 1)[0][0] == 0  # and nothing has changed


def test_a_state_of_other_shards_is_refused(photo_shards, digits_shards):
    with Loader(photo_shards, **OPTIONS) as loader, Loader(digits_shards, **OPTIONS) as other:
        prints = [opened.shards.manifest.fingerprint for opened in (loader, other)]
        with pytest.raises(InputError, match=f"the state has shards='{prints[0]}', the loader shards='{prints[1]}'"):
            other.load_state_dict(loader.state_dict())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "the state has no seed, epoch, num_yielded; give what Loader.state_dict"),
        ({"seed": 0, "epoch": -1, "num_yielded": 0}, "epoch=-1 and num_yielded=0; must be integers of 0 or more"),
        ({"seed": 0, "epoch": 0, "num_yielded": 4}, "num_yielded at most 3, the steps of an epoch"),
        ({"seed": 0, "epoch": "1", "num_yielded": 0}, "epoch='1' and"),
    ],
)
def test_what_is_no_state_is_refused(state, message):
    with pytest.raises(InputError, match=message):
        read_state(state, {"seed": 0}, NUM_STEPS)


def test_a_chosen_epoch_is_in_the_state_too(photo_shards):
    with Loader(photo_shards, **OPTIONS) as loader:
        loader.epoch = 4
        assert (loader.state_dict()["epoch"], loader.state_dict()["num_yielded"]) == (4, 0)
        assert next(iter(loader)).step == 4 * NUM_STEPS
        assert (loader.state_dict()["epoch"], loader.state_dict()["num_yielded"]) == (4, 1)
