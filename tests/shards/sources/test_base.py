import numpy as np
import pytest

from cbd_fast.shards.sources.base import SourceImage


def image(name, **fields):
    return SourceImage(**{"split": "train", "name": name, "label": 0, "num_bytes": 1, "data": b"x"} | fields)


def test_reading_a_part_of_a_file(tmp_path):
    path = tmp_path / "some.tar"
    path.write_bytes(bytes(range(100)))
    part = image("a", path=str(path), offset=10, num_bytes=5, data=None)
    assert part.read() == bytes(range(10, 15))
    with pytest.raises(OSError, match="ends too early"):
        image("a", path=str(path), offset=98, num_bytes=5, data=None).read()
    with pytest.raises(OSError, match="not a regular file"):
        image("a", path=str(tmp_path), data=None).read()
    with pytest.raises(FileNotFoundError):
        image("a", path=str(tmp_path / "none"), data=None).read()
    assert np.frombuffer(image("a").read(), np.uint8).tolist() == [120]
