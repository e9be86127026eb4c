import threading

import numpy as np
import pytest

from cbd_fast.loading.sampling import parallel_map
from cbd_fast.loading.sampling.parallel_map import map_range, on_all_cores


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (3, 4), (7, 17), (0, 30)])
def test_a_range_is_mapped_in_blocks(start, stop, monkeypatch):
    monkeypatch.setattr(parallel_map, "BLOCK_SIZE", 10)
    lengths = []

    def square(numbers):
        lengths.append(len(numbers))
        return numbers * numbers

    values = map_range(square, start, stop, np.uint32)
    assert values.dtype == np.uint32
    assert values.tolist() == [number * number for number in range(start, stop)]
    assert sum(lengths) == stop - start
    assert max(lengths, default=0) <= 10


def test_errors_of_blocks_are_raised_and_no_thread_stays():
    before = threading.active_count()

    def fail(item):
        raise ValueError(f"item {item}")

    for num in (1, 5):
        with pytest.raises(ValueError, match="item"):
            on_all_cores(fail, range(num))
    assert threading.active_count() == before
