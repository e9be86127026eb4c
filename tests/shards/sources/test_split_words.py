import pytest

from cbd_fast.shards.sources.split_words import folders_named_as_splits, named_splits

NAMES = {
    "train": "train-0 training-0 TRAIN Train_1 imagenet-train-000 ImageNetTrain train00 trainset trainData trn_1",
    "val": "val2017 VALID validation-00001 dev_0 eval devset ValSet validationset cocoVal2017 val",
    "test": "testset-0 TestData_0 test.v2 tst_1 Test testing123 TESTset testA testdata test_images my-test tests",
    "train val": "train_val-3 trainval TrainVal-0 valtrain train-and-val",
    "test train": "traintest TrainTest_5 train_test-0",
    "": "latest-0 contest_3 greatest-1 values-0 valley interval strain brain terrain unlabeled retrieval untrained",
}
UNCLEAR = "holdout-1 held_out imagenettrain mytest pretrain trains testa cocoval2017 te-0 Xtest validated latesttest"


@pytest.mark.parametrize(("splits", "name"), [(splits, name) for splits in NAMES for name in NAMES[splits].split()])
def test_words_as_people_write_them(splits, name):
    found = named_splits(name)
    assert (" ".join(sorted(found.splits)), found.unclear) == (splits, ())


@pytest.mark.parametrize("name", UNCLEAR.split())
def test_what_may_be_a_split_is_unclear(name):
    found = named_splits(name)
    assert found.unclear
    assert not found.splits


def test_forged_names_take_no_time():
    for name in ("traindata" + "dataset" * 30 + "q", "trn" * 80 + "q", "testsets" * 30, "x" * 250 + "test"):
        named_splits(name)


def test_folders_that_are_nothing_but_splits():
    names = ["train", "Validation", "val2017", "test_images", "train_val", "test tube", "trainstation", "cat", "images"]
    assert folders_named_as_splits(names) == names[:5]
    assert folders_named_as_splits(["cifar_train", "cifar_test", "cat"]) == ["cifar_train", "cifar_test"]
    assert folders_named_as_splits(["cats_train", "dogs_test", "train_cat"]) == []
    assert folders_named_as_splits(["train", "holdout"]) == ["train", "holdout"]
    assert folders_named_as_splits(["train", "query", "bus"]) == ["train"]
