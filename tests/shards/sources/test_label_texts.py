import pytest

from cbd_fast.shards.sources.base import SourceImage
from cbd_fast.shards.sources.label_texts import ClassNumbers, check_label, is_number, looks_like_number


def image(label):
    return SourceImage(split="train", name="a", label=label, num_bytes=1)


def number_in(classes, label, own_classes=None, **options):
    numbered = ClassNumbers(classes, "FILE", **options).numbered(image(label), own_classes)
    assert (numbered.label == -1) == (numbered.problem is not None)
    return numbered.label


def test_numbers_and_what_only_looks_like_them():
    for text in ("0", "7", "007", "16777216"):
        assert is_number(text)
    odd = [
        "-1",
        "+3",
        "3.5",
        "1,000",
        "1_000",
        "0x1",
        "16777217",
        "9" * 5000,
        "0" * 5000,
        "\u0663",
        "\uff13",
        "\u00bd",
        ".5",
        "5.",
    ]
    for text in odd:
        assert looks_like_number(text)
        assert not is_number(text)
    for text in ("", "cat", "n01440764", "1e3", "3 cats", "unknown", "nan", "."):
        assert not is_number(text)
        assert not looks_like_number(text)


@pytest.mark.parametrize("text", ["", "a\nb", "a\x1b[31m", "a\0", "\ud800", "a\u202eb", "a\u2028b"])
def test_texts_that_are_no_labels(text):
    with pytest.raises(ValueError, match=r"not one label|cannot be shown") as error:
        check_label(text, "x\x1b.cls")
    assert str(error.value).isprintable()


def test_labels_of_all_scripts_are_labels():
    for text in ("Mélèze\xa0rouge", "\u0645\u06cc\u200c\u062e\u0648", "猫", "a b"):
        assert check_label(text, "x") == text


def test_names_and_positions_of_known_classes():
    assert [number_in(["cat", "dog"], label) for label in ("cat", "dog", "0", "1", "2", "-1", "eel")] == [
        0, 1, 0, 1, -1, -1, -1
    ]  # fmt: skip
    assert number_in(["caf\u00e9"], "cafe\u0301") == 0
    # where numbers are names of other classes, a number is never a position
    assert [number_in(["7", "3", "x"], label) for label in ("7", "3", "0", "2", "x")] == [0, 1, -1, -1, 2]
    assert [number_in(["0", "1", "2"], label) for label in ("0", "2")] == [0, 2]


def test_numbers_in_our_own_shards_stand_for_names():
    own = ["dog", "cat", "eel"]
    assert [number_in(["cat", "dog"], label, own) for label in ("0", "1", "2", "3", "dog")] == [1, 0, -1, -1, -1]
    assert number_in(["cat", "dog"], "1", ["0", "1"]) == 1
    assert number_in(["cat", "dog"], "1", None, are_positions=False) == -1
