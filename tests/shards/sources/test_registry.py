from cbd_fast.registry import SOURCES

NAMES = {"digits", "folder", "list", "inaturalist", "tiny-imagenet", "cifar10", "cifar100", "webdataset"}


def test_every_layout_has_its_name_and_says_what_it_is():
    assert set(SOURCES) >= NAMES
    assert all(SOURCES.describe()[name].endswith((".", ").")) for name in NAMES)
    assert {name for name in NAMES if SOURCES[name].is_fixed} == {"digits"}
