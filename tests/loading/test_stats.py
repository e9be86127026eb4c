import threading
import time

from cbd_fast import Loader
from cbd_fast.loading.stats import LoaderStats, Recorder
from tests.helpers import OPTIONS


def test_what_several_threads_report_adds_up():
    recorder = Recorder()

    def work():
        for _ in range(100):
            recorder.add("num_batches", 1)
            recorder.add("reading_seconds", 0.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.stats() == LoaderStats(num_batches=400, reading_seconds=200.0)


def test_a_block_is_timed_even_if_it_fails():
    recorder = Recorder()
    try:
        with recorder.timing("decoding"):
            time.sleep(0.02)
            raise ValueError
    except ValueError:
        pass
    assert 0.02 <= recorder.stats().decoding_seconds < 1


def test_since_and_per_batch():
    before = LoaderStats(num_batches=2, num_images=8, planning_seconds=1.0)
    now = LoaderStats(num_batches=6, num_images=24, planning_seconds=3.0, waiting_seconds=1.0)
    assert now.since(before) == LoaderStats(num_batches=4, num_images=16, planning_seconds=2.0, waiting_seconds=1.0)
    assert now.since(before).milliseconds_per_batch() == {
        "planning": 500.0,
        "reading": 0.0,
        "decoding": 0.0,
        "finishing": 0.0,
        "waiting": 250.0,
    }
    assert set(LoaderStats().milliseconds_per_batch().values()) == {0.0}


def test_a_loader_counts(photo_shards):
    with Loader(photo_shards, **OPTIONS, decoder="torch") as loader:
        assert loader.stats() == LoaderStats()
        decode = loader._decode_batch._decode

        def slow_decode(images, plan):
            time.sleep(0.1)
            return decode(images, plan)

        loader._decode_batch._decode = slow_decode
        list(loader.steps(0, 5))
        stats = loader.stats()
    assert (stats.num_batches, stats.num_images, stats.num_cached) == (5, 30, 0)
    times = stats.milliseconds_per_batch()
    assert min(times.values()) > 0
    assert times["decoding"] >= 100
    assert times["decoding"] > times["planning"]
