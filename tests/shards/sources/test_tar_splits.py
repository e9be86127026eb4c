import os

import pytest

from cbd_fast.errors import InputError
from cbd_fast.shards.sources.tar_splits import MAX_PATTERNS_SHOWN, describe_paths, find_tars, split_tars
from tests.shards.sources.helpers import write_tar


def splits_of(tars, folder="here", known=None, notes=None, **globs):
    return split_tars(folder, tars, globs, known or {}, [] if notes is None else notes)


def test_tars_as_people_name_them():
    tars = ["TestData_0.tar", "latest-train-0.tar", "testset-0.tar", "train-0.tar", "val2017.tar"]
    notes = []
    assert splits_of(tars, notes=notes) == {
        "train": ["latest-train-0.tar", "train-0.tar"],
        "val": ["val2017.tar"],
        "test": ["TestData_0.tar", "testset-0.tar"],
    }
    assert notes == [
        "train: 2 tars: latest-train-0.tar, train-0.tar",
        "val: 1 tars: val2017.tar",
        "test: 2 tars: TestData_0.tar, testset-0.tar",
    ]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ("trainval-0.tar", "named for train and val"),
        ("train_and_test.tar", "named for test and train"),
        ("holdout-0.tar", "may mean a split or not"),
        ("train_holdout-0.tar", "may mean a split or not"),
        ("mytest-0.tar", "may mean a split or not"),
        ("latest-0.tar", "named for no split, as others are"),
        ("part-0.tar", "named for no split, as others are"),
        ("test/train-0.tar", "named for train, in a folder named for test"),
        ("a/testset/b/0.train.tar", "named for train, in a folder named for test"),
    ],
)
def test_nothing_that_is_not_clear_is_trained_on(other, why):
    for tars in (["train-0.tar", other], [other, "train-0.tar", "train-1.tar"]):
        with pytest.raises(InputError, match=f"not clear: .*{why}.*--train 'PATTERN' --val 'PATTERN'"):
            splits_of(tars)
    tars = ["train-0.tar", other]
    assert splits_of(tars, train=tars[0], test=other) == {"train": tars[:1], "test": [other]}  # patterns win


def test_unclear_names_alone_are_no_training_images():
    for tars in (["te-0.tar", "tr-0.tar"], ["holdout.tar"], ["mytest.tar"], ["trainval.tar"]):
        with pytest.raises(InputError, match="which tars are for training is not clear"):
            splits_of(tars)


def test_a_folder_that_names_all_splits_says_nothing():
    tars = ["train_test_split/test-0.tar", "train_test_split/train-0.tar"]
    assert splits_of(tars) == {"train": tars[1:], "test": tars[:1]}


def test_tars_without_any_word_are_for_training_and_it_is_said():
    notes = []
    assert splits_of(["0.tar", "1.tar", "contest.tar"], notes=notes) == {"train": ["0.tar", "1.tar", "contest.tar"]}
    assert "all are for training" in notes[0]


def test_what_is_known_of_our_own_shards_comes_before_words():
    tars = ["test-of-time-0.tar", "x.tar"]
    assert splits_of(tars, known={tars[0]: "train", "x.tar": "test"}) == {"train": tars[:1], "test": ["x.tar"]}


def test_every_tar_is_listed_in_little_room():
    many = [f"train/{number:04d}.tar" for number in range(147)] + ["train/x.tar"]
    assert describe_paths(many) == "train/{0000..0146}.tar, train/x.tar"
    assert describe_paths([path for path in many if path != "train/0007.tar"]) == (
        "train/{0000..0146}.tar (146 of these), train/x.tar"
    )
    assert describe_paths(["a-1-of-2.tar", "a-2-of-2.tar"]) == "a-{1..2}-of-2.tar"
    odd = describe_paths([f"{'x' * number}.tar" for number in range(1, MAX_PATTERNS_SHOWN + 6)])
    assert odd.endswith(" and 5 others")


def test_tars_that_fit_no_pattern_are_named():
    notes = []
    splits_of(["train-0.tar", "extra-0.tar", "extra-1.tar"], train="train*", notes=notes)
    assert "2 tars fit no pattern and are left out: extra-{0..1}.tar" in notes


def test_what_lies_beside_tars(tmp_path):
    folder, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for path in (folder / "train-0.tar", folder / "deep" / "TRAIN-1.TAR", elsewhere / "x" / "train-2.tar"):
        write_tar(path, [])
    for name in ("._train-0.tar", ".hidden/train-3.tar", "images.zip", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    os.symlink(elsewhere, folder / "linked")
    os.symlink(folder / "deep", folder / "again")
    os.symlink(tmp_path, folder / "up")
    os.symlink(folder, elsewhere / "round")
    os.symlink(folder / "train-0.tar", folder / "newest-train.tar")
    notes = []
    assert find_tars(folder, False, notes) == ["deep/TRAIN-1.TAR", "linked/x/train-2.tar", "train-0.tar"]
    assert notes == [
        "1 archives that are no tars are passed over, such as images.zip",
        "1 links to other tars are passed over, such as newest-train.tar",
    ]
    (folder / "backup.tgz").touch()
    with pytest.raises(InputError, match=r"compressed shards such as backup\.tgz"):
        find_tars(folder, False, notes)
    assert len(find_tars(folder, True, notes)) == 3
    assert "1 compressed tars are passed over, such as backup.tgz" in notes
    os.symlink(folder / "nowhere", folder / "train-9.tar")
    with pytest.raises(InputError, match=r"train-9\.tar is a link to nothing"):
        find_tars(folder, True, notes)
