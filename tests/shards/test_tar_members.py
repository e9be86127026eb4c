"""Tars that somebody else made: what is not a plain file is passed over, and no header is believed."""

import io
import os
import tarfile
import time
from contextlib import suppress

import pytest

from cbd_fast.shards.tar_members import MAX_HEADER_BYTES, read_member, regular_members

BLOCK = tarfile.BLOCKSIZE


def member(name, data=b"x", **fields) -> bytes:
    """Header, content and padding; ``fields`` replace those of the header."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % BLOCK)


def with_sum(header: bytes) -> bytes:
    """A header of 512 bytes with the checksum that goes with it."""
    header = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def set_size(block: bytes, size: int) -> bytes:
    """The member with another size in base 256, which may be negative or enormous."""
    field = (b"\x80" if size >= 0 else b"\xff") + (size & (1 << 88) - 1).to_bytes(11, "big")
    return with_sum(block[:124] + field + block[136:BLOCK]) + block[BLOCK:]


def pax(records: bytes) -> bytes:
    return member("pax", records, type=tarfile.XHDTYPE)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    size = len(rest) + 1
    while len(b"%d" % size) + len(rest) != size:
        size += 1
    return b"%d" % size + rest


@pytest.fixture
def names(tmp_path):
    def read(data: bytes) -> list[str]:
        path = tmp_path / "a.tar"
        path.write_bytes(data)
        return [found.name for found in regular_members(path)]

    return read


def test_only_plain_files_are_members(names):
    others = b"".join(
        member(f"{number}.jpg", type=kind, linkname="/etc/passwd", data=b"")
        for number, kind in enumerate((tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE,
                                       tarfile.DIRTYPE, tarfile.FIFOTYPE))
    )  # fmt: skip
    assert names(member("a.jpg") + others + member("b.jpg", b"y" * 700) + bytes(2 * BLOCK)) == ["a.jpg", "b.jpg"]


def test_sparse_members_are_passed_over(names):
    old = bytearray(member("sparse.jpg", b"", type=tarfile.GNUTYPE_SPARSE)[:BLOCK])
    old[386:410] = b"%011o\0%011o\0" % (0, 512)  # one piece of 512 bytes
    old[483:495] = b"%011o\0" % (1 << 32)  # of 4 GB
    sparse = set_size(with_sum(bytes(old)), 512) + bytes(BLOCK)
    assert names(member("a.jpg") + sparse + member("b.jpg") + bytes(2 * BLOCK)) == ["a.jpg", "b.jpg"]
    new = pax(record(b"GNU.sparse.map", b"0,1") + record(b"GNU.sparse.size", b"%d" % (1 << 40)))
    assert names(new + member("s.jpg") + member("b.jpg") + bytes(2 * BLOCK)) == ["b.jpg"]


HOSTILE = {
    "a negative size": member("a") + set_size(member("b"), -512),
    "a size that goes round": member("a") + set_size(member("b"), -1024),
    "a long way back": member("a") + set_size(member("b"), -(1 << 80)),
    "a size of 2**80": member("a") + set_size(member("b"), 1 << 80),
    "a pax header of 8 GB": set_size(pax(record(b"path", b"x")), 8 << 30) + member("b"),
    "a pax header below 0": set_size(pax(record(b"path", b"x")), -512) + member("b"),
    "a long name of 8 GB": set_size(member("l", b"name", type=tarfile.GNUTYPE_LONGNAME), 8 << 30) + member("b"),
    "a pax size below 0": pax(record(b"size", b"-1")) + member("b"),
    "a pax size of 5000 digits": pax(record(b"size", b"9" * 5000)) + member("b"),
    "a pax size that is no number": pax(record(b"size", b"1e9")) + member("b"),
    "a pax record of length 0": pax(b"0 a=b\n") + member("b"),
    "a pax record that is too long": pax(b"999999 a=b\n") + member("b"),
    "a pax record without a sign": pax(b"5 ab\n") + member("b"),
    "10,000 pax headers": pax(record(b"comment", b"x")) * 10_000 + member("b"),
    "a sparse map that is no map": pax(record(b"GNU.sparse.map", b"a,b")) + member("b"),
    "sparse 1.0 without an end": pax(record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0"))
    + member("b", b"999999999\n" + b"1\n" * 200),
    "sparse 0.0 without a number": pax(record(b"GNU.sparse.offset", b"1" * 5000)) + member("b"),
    "an old sparse one that goes on": with_sum(
        member("s", b"", type=tarfile.GNUTYPE_SPARSE)[:482] + b"\1" + member("s", b"")[483:BLOCK]
    ),
    "nothing": b"",
    "no tar": b"\xff\xd8" * 4096,
    "zeros": bytes(10_240),
    "half a header": member("a")[:300],
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_headers_end_a_tar_at_once(names, data):
    began = time.perf_counter()
    with suppress(tarfile.TarError):
        assert len(names(member("first.jpg") + data)) <= 4
    with suppress(tarfile.TarError):
        assert len(names(data)) <= 3
    assert time.perf_counter() - began < 2


def test_large_headers_are_read_up_to_a_limit(names):
    name = "n" * 4000
    assert names(pax(record(b"path", name.encode())) + member("b") + bytes(2 * BLOCK)) == [name]
    with pytest.raises(tarfile.ReadError, match="a header of"):
        names(pax(record(b"comment", b"x" * MAX_HEADER_BYTES)) + member("b"))


def test_a_tar_that_is_cut_off_has_its_members_up_to_there(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(member("a.jpg") + set_size(member("b.jpg"), 1 << 40))
    members = regular_members(path)
    assert next(members).name == "a.jpg"
    with pytest.raises(tarfile.ReadError, match="unexpected end of data"):
        next(members)


def test_small_members_are_read(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(member("a.cls", b"12") + member("b.cls", b"3" * 5000) + bytes(2 * BLOCK))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert [read_member(descriptor, found, 10) for found in regular_members(path)] == [b"12", None]
    finally:
        os.close(descriptor)


def test_pipes_are_no_tars(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(OSError, match="no regular file"):
        list(regular_members(tmp_path / "a.tar"))


def test_it_finds_what_the_standard_library_finds(tmp_path, photo_shards):
    for path in photo_shards.glob("*.tar"):
        with tarfile.open(path) as tar:
            expected = [(found.name, found.offset_data, found.size) for found in tar]
        assert [(found.name, found.offset_data, found.size) for found in regular_members(path)] == expected
    for number, kind in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        path = tmp_path / f"{number}.tar"
        with tarfile.open(path, "w", format=kind) as tar:
            for name in ("a.jpg", "dir/" * 20 + "b.jpg", "é.jpg" if number else "e.jpg"):
                info = tarfile.TarInfo(name)
                info.size = 3
                tar.addfile(info, io.BytesIO(b"abc"))
        with tarfile.open(path) as tar:
            assert [found.name for found in regular_members(path)] == tar.getnames()
