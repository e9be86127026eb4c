from contextlib import closing

import pytest

from cbd_fast.errors import InputError
from cbd_fast.shards.sources.base import SourceImage
from cbd_fast.shards.writing.catalog import Catalog


def numbered(folder, labels):
    """Names of the classes, labels of the images in their order, and problems by text."""
    with closing(Catalog(folder / "catalog")) as catalog:
        images = [
            SourceImage(split="train", name=f"{n:06d}", label=label, num_bytes=1, data=b"", label_source=".cls")
            for n, label in enumerate(labels)
        ]
        catalog.add(images, None)
        catalog.order_by_offset()
        images = sorted(catalog.images("train", range(len(labels))), key=lambda image: image.name)
        problems = {labels[int(image.name)]: image.problem for image in images if image.problem}
        assert catalog.counts("train").sum() == len(labels) - sum(image.label == -1 for image in images)
        return catalog.classes, [image.label for image in images], problems


NUMBERS = [str(number % 12) for number in range(48)]
NAMES = [("cat", "dog", "eel")[number % 3] for number in range(48)]
ODD = ["-1", "3.5", "unknown", "nan", "0x1", "+3", "٣", "1_0", "9" * 5000, "16777217", "1e3", "cat"]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("place", [0, 17, 48])
def test_one_odd_label_changes_no_other(tmp_path, odd, place):
    classes, labels, problems = numbered(tmp_path, [*NUMBERS[:place], odd, *NUMBERS[place:]])
    assert classes == [str(number) for number in range(12)]
    assert labels == [*map(int, NUMBERS[:place]), -1, *map(int, NUMBERS[place:])]
    assert list(problems) == [odd]
    assert "is no number of a class (0, 1, 2, ...), in .cls" in problems[odd]
    assert len(problems[odd]) < 150


def test_numbers_stay_numbers_up_to_half_of_all(tmp_path):
    classes, labels, problems = numbered(tmp_path, ["0", "1", "0", "1", "cat", "dog", "-1", "cat"])
    assert (classes, labels) == (["0", "1"], [0, 1, 0, 1, -1, -1, -1, -1])
    assert set(problems) == {"cat", "dog", "-1"}
    assert numbered(tmp_path, [0, 2, 1, "02"])[:2] == (["0", "1", "2"], [0, 2, 1, 2])


def test_a_mixture_is_refused_with_both_kinds_and_the_remedy(tmp_path):
    with pytest.raises(
        InputError, match=r"2 images are numbers, such as 7 of train/000000 .* 'cat' of .*--classes FILE"
    ):
        numbered(tmp_path, ["7", *NAMES[:20], "8.5"])


@pytest.mark.parametrize("odd", ["-1", "7", "0.5", "٣"])
def test_a_number_among_names_is_no_class(tmp_path, odd):
    classes, labels, problems = numbered(tmp_path, [*NAMES, odd])
    assert classes == ["cat", "dog", "eel"]
    assert labels == [*(number % 3 for number in range(48)), -1]
    assert list(problems) == [odd]
    assert "is a number, and those of the others are names, in .cls" in problems[odd]


@pytest.mark.parametrize("num_captions", [48, 36])
def test_captions_are_no_classes(tmp_path, num_captions):
    captions = [f"a photo of number {number % num_captions}" for number in range(48)]
    with pytest.raises(InputError, match=rf"{num_captions} different labels, such as 'a photo.*captions.*--label-key"):
        numbered(tmp_path, captions)


def test_numbers_of_images_are_no_classes(tmp_path):
    with pytest.raises(InputError, match=r"48 different labels, such as 0 of train/000000 .* numbers of images"):
        numbered(tmp_path, [str(number) for number in range(48)])


def test_many_classes_in_few_images_are_classes(tmp_path):
    assert len(numbered(tmp_path, [str(number % 60) for number in range(100)])[0]) == 60
    assert len(numbered(tmp_path, [f"class {number % 60}" for number in range(100)])[0]) == 60


def test_all_labels_odd(tmp_path):
    with pytest.raises(InputError, match=r"no training images; images that cannot be used: train/000000: label -1"):
        numbered(tmp_path, ["-1", "-2"])


def test_a_gap_names_the_image_of_the_largest_label(tmp_path):
    with pytest.raises(InputError, match=r"488 of 501 classes .* such as '12', .* '500' \(that of train/000048\)"):
        numbered(tmp_path, [*NUMBERS, "500"])
    with pytest.raises(InputError, match=r"the largest is 16000000, that of train/000048: number the labels"):
        numbered(tmp_path, [*NUMBERS, "16000000"])


def test_two_spellings_of_a_name_are_one_class(tmp_path):
    classes, labels, _ = numbered(tmp_path, ["caf\u00e9", "cafe\u0301", "ant", "ant"])
    assert (classes, labels) == (["ant", "cafe\u0301"], [1, 1, 0, 0])


def test_numbers_of_a_source_that_knows_its_classes(tmp_path):
    for label in (2, -1, "1"):
        with closing(Catalog(tmp_path / "catalog")) as catalog:
            images = [
                SourceImage(split="train", name=str(n), label=each, num_bytes=1) for n, each in enumerate((0, 1, label))
            ]
            with pytest.raises(InputError, match=f"train/2: label {label!r} is no number of one of the 2 classes"):
                catalog.add(images, ["a", "b"])
