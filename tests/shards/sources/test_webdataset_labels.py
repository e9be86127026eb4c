"""Labels in tars of strangers: whatever one of them is, the others keep their meaning, and it is named."""

import json

import pytest

from cbd_fast.errors import InputError
from cbd_fast.shards.sources.webdataset import TarLayout, webdataset_source
from tests.shards.sources.helpers import cataloged, labelled, labels, problems, write_tar

NUMBERS = [number % 3 for number in range(24)]
GOOD = {f"train-0.tar/{number:04d}.jpg": number % 3 for number in range(24)}
JPG, CLS = ("x.jpg", b"x"), ("x.cls", b"0")


def with_members(folder, *members, extension="cls", values=NUMBERS):
    write_tar(folder / "train-0.tar", [*labelled(values, extension), *members])
    return folder


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([JPG, ("x.cls", b"-1")], "label -1 is no number of a class .*, in .cls"),
        ([JPG, ("x.cls", b"unknown\n")], "label 'unknown' is no number"),
        ([JPG, ("x.cls", b"")], "x.cls holds '', not one label"),
        ([JPG, ("x.cls", b" \n ")], "x.cls holds '', not one label"),
        ([JPG, ("x.cls", b"1\n2")], "not one label"),
        ([JPG, ("x.cls", b"9" * 5000)], "label 9{40}... is no number"),
        ([JPG, ("x.cls", b"9" * 70_000)], "x.cls has 70,000 bytes, more than the 65,536"),
        ([JPG, ("x.cls", b"\xb2")], "x.cls is no UTF-8 text"),
        ([JPG, ("x.cls", b"\x1b[31m")], "characters that cannot be shown"),
        ([JPG, ("x.cls", b"\x80\x04K\x01.")], "x.cls is no UTF-8 text"),
        ([JPG], "x.jpg has no label, neither .cls nor .txt"),
        ([JPG, ("x.txt", b"1")], "x.jpg has no .cls, where the others have their label, but .txt"),
        ([JPG, CLS, ("x.json", '{"who": "é"}'.encode("latin-1"))], "x.json is not JSON in UTF-8"),
        ([JPG, CLS, ("x.json", b"{")], "x.json is not JSON"),
        ([JPG, CLS, ("x.json", b"[" * 100_000)], "x.json is not JSON"),
        ([JPG, CLS, ("x.json", b"[" * 200 + b"]" * 200)], "x.json is nested deeper than 100 times"),
        ([JPG, CLS, ("x.json", b'{"a": ' + b"9" * 5000 + b"}")], "x.json is not JSON"),
        ([JPG, CLS, ("x.json", b" " * (4 << 20) + b"{}")], "x.json has 4,194,306 bytes, more than"),
        ([JPG, CLS, JPG], "x.jpg is there twice"),
        ([JPG, CLS, ("x.CLS", b"1")], "x.CLS is there twice"),
        (
            [JPG, CLS, ("x.png", b"x")],
            r"beside x.jpg there are other images \(\['jpg', 'png'\]\); choose one with",
        ),
        ([("1.5.jpg", b"x"), ("1.5.cls", b"0")], r"extension, here '5\.cls'; rename the members"),
        ([("1.5.jpg", b"x"), ("1.5.cls", b"0"), ("1.6.jpg", b"x"), ("1.6.cls", b"1")], "beside 1.5.jpg .* or rename"),
        ([JPG, CLS, ("x.5.jpg", b"x"), ("x.5.cls", b"1")], "beside x.jpg .* or rename the members"),
    ],
)
def test_one_bad_sample_is_named_and_changes_no_other(tmp_path, members, why):
    folder = with_members(tmp_path, *members)
    assert labels(folder) == GOOD
    ((name, problem),) = problems(folder).items()
    assert name.removeprefix("train-0.tar/") in [member for member, _ in members]
    with pytest.raises(ValueError, match=why):
        raise ValueError(problem)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\xef\xbb\xbf1", 1),
        ("1\r\n".encode("utf-16"), 1),
        ("\ufeff1".encode("utf-16-be"), 1),
        ("1".encode("utf-32"), 1),
        (b"  1  ", 1),
        (b"01", 1),
    ],
)
def test_marks_and_spaces_around_a_label_are_no_part_of_it(tmp_path, data, name):
    assert labels(with_members(tmp_path, JPG, ("x.cls", data)))["train-0.tar/x.jpg"] == name


def test_json_in_all_its_encodings_is_read(tmp_path):
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        values = [json.dumps({"a": {"b": number}}).encode(encoding) for number in NUMBERS]
        write_tar(tmp_path / "train-0.tar", labelled(values, "json"))
        assert labels(tmp_path, label_key="a.b") == GOOD


def test_odd_values_of_a_key_in_json(tmp_path):
    odd = [-1, 3.5, 1.0, None, True, [1], {}, "", "-1", " ", 10**30, "٣", "\ud800", "unknown", "a\nb", "\x1b"]
    values = [json.dumps({"label": value}) for value in [*NUMBERS, *odd]]
    write_tar(tmp_path / "train-0.tar", labelled(values, "json"))
    assert labels(tmp_path, label_key="label") == GOOD
    named = problems(tmp_path, label_key="label")
    assert len(named) == len(odd)
    assert all(problem.isprintable() for problem in named.values())
    assert "has the label 3.5 under 'label' in its .json, which is no name or" in named["train-0.tar/0025.jpg"]


def test_members_that_are_not_next_to_each_other_belong_together(tmp_path):
    members = list(labelled(NUMBERS))
    by_kind = sorted(members, key=lambda member: member[0].rpartition(".")[2])
    write_tar(tmp_path / "train-0.tar", by_kind)
    assert labels(tmp_path) == GOOD
    write_tar(tmp_path / "train-0.tar", [*members, ("0003.json", b"{}")])
    assert labels(tmp_path) == GOOD
    write_tar(tmp_path / "train-0.tar", [*members, *members[:2]])  # another image of the same name
    with pytest.raises(InputError, match=r"listed twice, such as 'train-0\.tar/0000\.jpg' in train"):
        cataloged(tmp_path)


def test_captions_in_txt_are_no_classes(tmp_path):
    members = list(labelled((f"a photo of {number}" for number in range(24)), "txt"))
    write_tar(tmp_path / "00000.tar", [*members[:2], ("0000.json", b'{"caption": "x", "kind": "y"}'), *members[2:]])
    with pytest.raises(
        InputError,
        match=r"24 different labels.*\(in \.txt\): .* captions .*--label-key KEY of \.json \(\['caption', 'kind'\]\)",
    ):
        cataloged(tmp_path)


def test_captions_beside_labels_are_not_looked_at(tmp_path):
    members = list(labelled(NUMBERS))
    write_tar(tmp_path / "train-0.tar", [each for m in members for each in (m, (m[0][:-3] + "txt", b"a photo"))][:-1])
    write_tar(
        tmp_path / "train-0.tar",
        [each for m in members for each in ([m, (m[0][:4] + ".txt", b"words")] if m[0].endswith("cls") else [m])],
    )
    assert labels(tmp_path) == GOOD


def test_numbers_of_several_folders_are_said_to_be_the_same(tmp_path):
    for name in ("a", "b"):
        write_tar(tmp_path / name / "train-0.tar", labelled(NUMBERS))
        write_tar(tmp_path / "val" / f"{name}.tar", labelled(NUMBERS))
    source = webdataset_source(tmp_path, TarLayout())
    assert len(list(source.images())) == 96
    assert source.notes[-1] == "labels are numbers in 2 folders (a, b): the same number is taken for the same class"


def test_a_first_tar_without_samples_says_nothing_of_labels(tmp_path):
    write_tar(tmp_path / "train-0.tar", [])
    write_tar(tmp_path / "train-1.tar", [("readme.md", b"")])
    write_tar(tmp_path / "train-2.tar", labelled(NUMBERS, "txt"))
    assert len(labels(tmp_path)) == 24


def test_labels_in_cls_here_and_in_txt_there_are_named(tmp_path):
    write_tar(tmp_path / "train-0.tar", labelled(NUMBERS, "txt"))
    write_tar(
        tmp_path / "train-1.tar", [("x.jpg", b""), ("x.txt", b"1"), ("x.cls", b"2"), ("y.jpg", b""), ("y.cls", b"1")]
    )
    assert labels(tmp_path) == GOOD
    assert problems(tmp_path) == {
        "train-1.tar/x.jpg": "x.jpg has a label in .cls and one in .txt, where the others have theirs",
        "train-1.tar/y.jpg": "y.jpg has no .txt, where the others have their label, but .cls",
    }


def test_names_of_one_spelling_in_training_and_another_in_testing(tmp_path):
    write_tar(tmp_path / "train-0.tar", labelled(["caf\u00e9", "ant"] * 6, "txt"))
    write_tar(tmp_path / "test-0.tar", labelled(["cafe\u0301", "ant"], "txt"))
    classes, images = cataloged(tmp_path)
    assert len(classes) == 2
    assert len({label for _, label, _ in images}) == 2
