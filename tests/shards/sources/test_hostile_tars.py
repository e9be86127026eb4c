"""Tars that somebody forged: an error that says where, or a sample that is named; no crash, no hang, no gigabytes."""

import io
import resource
import tarfile
from contextlib import suppress

import numpy as np
import pytest

from cbd_fast.errors import InputError
from tests.shards.sources.helpers import cataloged, labelled, labels, problems, write_tar

GOOD = list(labelled([number % 3 for number in range(24)]))


@pytest.fixture(autouse=True)
def _little_memory():
    """Whoever takes gigabytes here gets a MemoryError."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def member(name, kind=tarfile.REGTYPE, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def headers_of(path, offset=0):
    return bytearray(path.read_bytes()[offset:])


def with_size(header: bytes, size: bytes) -> bytes:
    """A header with another size field, its checksum mended."""
    changed = bytearray(header[:512])
    changed[124:136] = size.ljust(12, b"\0")
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def huge(number: int) -> bytes:
    """A size in base 256."""
    return number.to_bytes(12, "big", signed=True) if number < 0 else b"\x80" + number.to_bytes(11, "big")


@pytest.mark.parametrize(("kind", "option"), [(tarfile.LNKTYPE, "hard-"), (tarfile.SYMTYPE, "")])
def test_links_inside_a_tar_are_named(tmp_path, kind, option):
    links = [member("x.jpg", kind, linkname="0000.jpg"), member("y.cls", kind, linkname="../0000\x1b.cls")]
    write_tar(tmp_path / "t.tar", [*GOOD, (links[0], b""), ("x.cls", b"1"), ("y.jpg", b""), (links[1], b"")])
    assert len(labels(tmp_path)) == 24
    assert problems(tmp_path) == {
        "t.tar/x.jpg": f"x.jpg is a link to '0000.jpg': store the file itself (tar --{option}dereference)",
        "t.tar/y.jpg": rf"y.cls is a link to '../0000\\x1b.cls': store the file itself (tar --{option}dereference)",
    }


def test_devices_and_folders_are_passed_over(tmp_path):
    kinds = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    odd = [(member(f"x{number}.jpg", kind), b"") for number, kind in enumerate(kinds)]
    write_tar(tmp_path / "t.tar", [*odd, *GOOD])
    assert len(labels(tmp_path)) == 24
    assert not problems(tmp_path)


def test_names_that_lead_elsewhere_are_only_names(tmp_path):
    names = [
        "/etc/passwd",
        "../../x",
        "a/../../b",
        "\x1b]0;evil\x07",
        "a\nb",
        "x" * 300,
        "\u202etxt",
        "caf\udce9",
        "C:\\x",
    ]
    write_tar(tmp_path / "t.tar", [m for n in names for m in ((f"{n}.jpg", b"x"), (f"{n}.cls", b"0"))])
    assert len(labels(tmp_path)) == len(names)
    write_tar(tmp_path / "t.tar", [*GOOD, *((f"{name}.jpg", b"x") for name in names)])
    assert all(problem.isprintable() for problem in problems(tmp_path).values())
    assert len(problems(tmp_path)) == len(names)


@pytest.mark.parametrize("extension", ["cls", "txt", "json"])
def test_labels_of_gigabytes_are_not_read(tmp_path, extension):
    write_tar(tmp_path / "t.tar", [*GOOD, ("x.jpg", b"x"), ("x.cls", b"0")][: None if extension == "json" else -1])
    end = sum(512 + -(-len(data) // 512) * 512 for _, data in [*GOOD, ("x.jpg", b"x")]) + (
        1024 if extension == "json" else 0
    )
    header = with_size(tarfile.TarInfo(f"x.{extension}").tobuf(), b"%011o" % (3 << 30))
    with open(tmp_path / "t.tar", "r+b") as file:  # its content is a hole
        file.seek(end)
        file.write(header)
        file.truncate(end + 512 + (3 << 30) + 10240)
    assert len(labels(tmp_path)) == 24
    (problem,) = problems(tmp_path).values()
    assert "3,221,225,472 bytes, more than" in problem or "has no .cls" in problem


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
@pytest.mark.parametrize("size", [2 << 20, 3 << 30, 1 << 62, 1 << 70, -512, -1024])
def test_bombs_in_headers(tmp_path, kind, size):
    info = member("bomb", kind)
    write_tar(tmp_path / "t.tar", GOOD[:2])
    good = (tmp_path / "t.tar").read_bytes()
    for before in (b"", good[:2048]):
        (tmp_path / "t.tar").write_bytes(before + with_size(info.tobuf(), huge(size)) + good)
        with pytest.raises(InputError, match=r"t\.tar: not a whole tar"):
            cataloged(tmp_path)


@pytest.mark.parametrize("size", [b"x", huge(1 << 62), huge(1 << 80), huge(-512), huge(-2048), b"77777777777"])
@pytest.mark.parametrize("place", [0, 2, 46])
def test_forged_sizes(tmp_path, size, place):
    write_tar(tmp_path / "t.tar", GOOD)
    data = bytearray((tmp_path / "t.tar").read_bytes())
    data[place * 1024 : place * 1024 + 512] = with_size(data[place * 1024 :], size)
    (tmp_path / "t.tar").write_bytes(data)
    with pytest.raises(InputError, match=r"t\.tar: (not a whole tar|goes on after its end)"):
        cataloged(tmp_path)


def test_many_headers_within_each_other(tmp_path):
    info = member("x", tarfile.XHDTYPE)
    (tmp_path / "t.tar").write_bytes(with_size(info.tobuf(), b"0") * 5000 + bytes(10240))
    with pytest.raises(InputError, match="not a whole tar"):
        cataloged(tmp_path)


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)},
        {"GNU.sparse.size": str(1 << 40), "GNU.sparse.map": f"0,1,{1 << 40},0"},
        {"GNU.sparse.map": "x,y"},
        {"size": "-5000"},
        {"size": "9" * 5000},
        {"size": str(1 << 70)},
        {"path": "\x1b[31m.jpg"},
        {"path": "a" * 100_000 + ".jpg"},
        {"mtime": "nan"},
        {"hdrcharset": "BINARY"},
    ],
)
def test_forged_extended_headers(tmp_path, headers):
    info = member("x.jpg", pax_headers=headers)
    write_tar(
        tmp_path / "t.tar", [*GOOD[:2], (info, b"1\n0\n1\n"), ("x.cls", b"1"), *GOOD[2:]], format=tarfile.PAX_FORMAT
    )
    with suppress(InputError):  # nothing else
        assert set(labels(tmp_path).values()) == {0, 1, 2}
        assert all(problem.isprintable() for problem in problems(tmp_path).values())


@pytest.mark.parametrize("name", ["x.jpg", "x.cls"])
def test_members_with_holes_are_named(tmp_path, name):
    header = bytearray(member(name, tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[257:265] = b"ustar  \0"
    header[386:410] = b"%011o\0%011o\0" % (0, 1)
    header[483:495] = b"%011o\0" % (7 << 30)  # the real size
    sparse = with_size(header, b"%011o" % 1) + b"0".ljust(512, b"\0")
    write_tar(tmp_path / "t.tar", [("x.jpg", b"x") if name == "x.cls" else ("x.cls", b"0")])
    other = (tmp_path / "t.tar").read_bytes()[:1024]
    write_tar(tmp_path / "t.tar", GOOD)
    (tmp_path / "t.tar").write_bytes(other + sparse + (tmp_path / "t.tar").read_bytes())
    assert len(labels(tmp_path)) == 24
    assert problems(tmp_path) == {"t.tar/x.jpg": f"{name} is stored with holes (sparse): store it whole"}


def test_tars_with_flipped_bytes(tmp_path):
    """Whatever is flipped: an error of ours, or labels."""
    buffer = io.BytesIO()
    write_tar(tmp_path / "t.tar", [*GOOD[:8], ("x.json", b'{"a": [1]}')], format=tarfile.PAX_FORMAT)
    buffer.write((tmp_path / "t.tar").read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = np.frombuffer(buffer.getvalue(), np.uint8).copy()
        block = int(rng.integers(0, 18)) * 512
        places = block + rng.integers(0, 512, 3)
        data[places] = rng.integers(0, 256, 3)
        header = data[block : block + 512]
        header[148:156] = 32
        header[148:156] = np.frombuffer(b"%06o\0 " % int(header.sum()), np.uint8)
        (tmp_path / "t.tar").write_bytes(data.tobytes())
        with suppress(InputError):  # nothing else
            cataloged(tmp_path)
