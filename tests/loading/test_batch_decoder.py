import resource

import numpy as np
import pytest

from cbd_fast import Loader
from cbd_fast.shards.reader import ShardReader
from tests.helpers import OPTIONS, as_array, encoded

MAX_GROWTH_BYTES = 100 << 20
PLAIN = np.zeros((24, 40, 3), np.uint8)


def with_sides(data, extension, side):
    """A file that says that it has these sides."""
    changed = bytearray(data)
    if extension == "jpg":
        start = data.index(b"\xff\xc0") + 5
        changed[start : start + 4] = side.to_bytes(2, "big") * 2
    elif extension == "png":
        changed[16:24] = side.to_bytes(4, "big") * 2
    else:
        changed[26:30] = min(side, 16383).to_bytes(2, "little") * 2
    return bytes(changed)


BOMBS = {
    "gif": encoded(PLAIN, "gif"),
    "jpg": encoded(PLAIN),
    "large jpg": with_sides(encoded(PLAIN), "jpg", 60000),
    "large png": with_sides(encoded(PLAIN, "png"), "png", 60000),
    "large webp": with_sides(encoded(PLAIN, "webp"), "webp", 60000),
    "no jpg": encoded(PLAIN)[:2] + b"\xff\xd9",
}


@pytest.mark.parametrize("cache", [None, 1.0])
@pytest.mark.parametrize("decoder", ["torch", "dali"])
def test_another_size_than_was_indexed_is_bad_before_memory_is_taken(photo_shards, monkeypatch, decoder, cache):
    bombs, read = dict(enumerate(BOMBS.values())), ShardReader.read
    monkeypatch.setattr(
        ShardReader, "read", lambda shards, index: as_array(bombs[index]) if index in bombs else read(shards, index)
    )
    with Loader(photo_shards, **OPTIONS | {"batch_size": 19}, max_bad_fraction=0.5, decoder=decoder) as warm:
        warm.batch(0)  # both decoders take some memory with their first batch
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    options = {"max_bad_fraction": 0.5, "decoder": decoder, "cache": cache}
    with Loader(photo_shards, **OPTIONS | {"batch_size": 19}, **options) as loader:
        ids = loader.batch(0).ids.tolist()
        reasons = loader.bad_images
    assert set(ids) == set(range(len(bombs), 19))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MAX_GROWTH_BYTES
    assert sorted(reasons) == sorted(bombs)
    for index, name in enumerate(BOMBS):
        sizes = {"jpg": "40 x 24", "large webp": "16383 x 16383"}.get(name, "60000 x 60000")
        expected = {"gif": "neither JPEG nor PNG nor WebP", "no jpg": "a JPEG without a frame"}
        assert reasons[index].startswith(expected.get(name, f"{sizes} pixels, but the index has"))
