import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbd_fast.shards.writing.tar_writer import tar_member


@given(st.from_regex(r"[0-9]{9}\.(jpg|png|cls|json)", fullmatch=True), st.binary(max_size=2000))
def test_members_are_those_of_tarfile(name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(data))
        expected = buffer.getvalue()[: tar.offset]
    assert b"".join(tar_member(name, data)) == expected


def test_names_that_do_not_fit_are_a_defect():
    with pytest.raises(AssertionError):
        tar_member("9" * 101, b"")
