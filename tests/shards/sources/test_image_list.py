import pytest

from cbd_fast.errors import InputError
from cbd_fast.shards.sources.image_list import list_source


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def listed(source):
    """Split, name and label of all images."""
    return sorted((image.split, image.name, image.label) for image in source.images())


def test_list_of_paths_and_labels(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"train/n01/a b.JPEG 1\r\n\ntrain/n00/c.JPEG 0\n")
    (tmp_path / "test.txt").write_text("val/n00/d.JPEG\t0\n", encoding="utf-8-sig")
    touch(tmp_path / "root" / "train" / "n01" / "a b.JPEG")
    source = list_source(tmp_path / "root", {"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"})
    assert source.classes == ["n00", "n01"]  # the folders name them
    expected = [("test", "val/n00/d.JPEG", 0), ("train", "train/n00/c.JPEG", 0), ("train", "train/n01/a b.JPEG", 1)]
    images = list(source.images())
    assert sorted((p.split, p.name, p.label) for p in images) == expected
    sizes = {image.name: image.num_bytes for image in images}
    assert (sizes["train/n01/a b.JPEG"], sizes["train/n00/c.JPEG"]) == (1, None)


def test_classes_of_a_list(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("mixed/a.jpg 0\nmixed/b.jpg 1\n")
    assert list_source(tmp_path, {"train": path}).classes == ["0", "1"]  # one folder for both
    path.write_text("x/a.jpg 0\ny/b.jpg 0\nz/c.jpg 1\n")
    assert list_source(tmp_path, {"train": path}).classes == ["0", "1"]
    names = tmp_path / "classes.txt"
    names.write_text("abbey\nairport terminal\n\n")
    assert list_source(tmp_path, {"train": path}, names).classes == ["abbey", "airport terminal"]
    names.write_text("abbey\n")
    with pytest.raises(InputError, match=r"names 1 classes, but .* labels up to 1"):
        list_source(tmp_path, {"train": path}, names)
    names.write_text("abbey\nabbey\n")
    with pytest.raises(InputError, match="each once"):
        list_source(tmp_path, {"train": path}, names)


@pytest.mark.parametrize("line", ["a.jpg", "a.jpg cat", "a.jpg -1", " 3", "a\0b.jpg 1", "a.jpg 99999999999"])
def test_bad_lines_of_a_list_are_named(tmp_path, line):
    (tmp_path / "train.txt").write_text(f"ok.jpg 0\n{line}\n")
    with pytest.raises(InputError, match=r"train\.txt: line 2: "):
        list_source(tmp_path, {"train": tmp_path / "train.txt"})


def test_a_label_that_only_the_test_list_has_is_refused(tmp_path):
    (tmp_path / "train.txt").write_text("a.jpg 0\n")
    (tmp_path / "test.txt").write_text("b.jpg 1\n")
    source = list_source(tmp_path, {"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"})
    with pytest.raises(InputError, match=r"'b\.jpg' has label 1, but .* only labels up to 0"):
        list(source.images())
    with pytest.raises(InputError, match="No such file"):
        list_source(tmp_path, {"train": tmp_path / "none.txt"})


def test_one_file_has_one_name(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(f"./a//x.jpg 0\nb/../a/y.jpg 0\n{tmp_path}/a/z.jpg 0\n")
    names = [name for _, name, _ in listed(list_source(tmp_path, {"train": path}))]
    assert names == ["a/x.jpg", "a/y.jpg", "a/z.jpg"]


def test_an_empty_list_is_refused(tmp_path):
    (tmp_path / "train.txt").write_text("\n")
    with pytest.raises(InputError, match="lists no images"):
        list_source(tmp_path, {"train": tmp_path / "train.txt"})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lists_in_all_their_encodings(tmp_path, encoding, end):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "train.txt").write_bytes((mark + f"é.jpg 0{end}b.jpg 1{end}").encode(encoding))
    touch(
        tmp_path / ("é.jpg" if encoding != "latin-1" else "é.jpg".encode("latin-1").decode("utf-8", "surrogateescape"))
    )
    images = list(list_source(tmp_path, {"train": tmp_path / "train.txt"}).images())
    assert [(image.label, image.num_bytes) for image in images] == [(0, 1), (1, None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.jpg 0\n".encode("utf-16-le"), "seems to be UTF-16 without its mark"),
        (b"\xff\xfea", "not whole UTF-16"),
        (b"a" * 200_000 + b" 0\n", "more than 65,536 characters"),
        (b"a.jpg " + b"9" * 5000, "at most 16777216"),
        ("a.jpg \u0663".encode(), "line 1"),
        (b"a.jpg 16000000\n", "has 1 different labels, but the largest is 16000000"),
        (bytes(range(256)), "line 1|not whole"),
    ],
)
def test_lists_that_are_none(tmp_path, content, message):
    (tmp_path / "train.txt").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        list(list_source(tmp_path, {"train": tmp_path / "train.txt"}).images())
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("name", ["caf\u00e9\ncafe\u0301", "a\n\nb", "a\nb\x1b[31m", "a\n \nb"])
def test_names_of_classes_that_are_none(tmp_path, name):
    (tmp_path / "train.txt").write_text("a.jpg 0\n")
    (tmp_path / "classes.txt").write_text(name)
    with pytest.raises(InputError, match="must hold one name per line"):
        list_source(tmp_path, {"train": tmp_path / "train.txt"}, tmp_path / "classes.txt")


def test_names_in_another_unicode_form_than_their_files(tmp_path):
    touch(tmp_path / "cafe\u0301" / "a.jpg", tmp_path / "\u00fc.jpg")
    (tmp_path / "train.txt").write_text("caf\u00e9/a.jpg 0\nu\u0308.jpg 1\n")
    images = list(list_source(tmp_path, {"train": tmp_path / "train.txt"}).images())
    assert [(image.name, image.read()) for image in images] == [("caf\u00e9/a.jpg", b"x"), ("u\u0308.jpg", b"x")]
