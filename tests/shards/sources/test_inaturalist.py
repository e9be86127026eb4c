import json

import pytest

from cbd_fast.errors import InputError
from cbd_fast.shards.sources.inaturalist import inaturalist_source


def listed(source):
    """Split, name and label of all images."""
    return sorted((image.split, image.name, image.label) for image in source.images())


def annotations(images, species, change=None):
    """A file of the competitions' form: images as (id, file, category), species as (category, name)."""
    form = {
        "info": {"year": 2018},
        "images": [{"id": i, "file_name": file, "width": 8, "height": 8, "license": 1} for i, file, _ in images],
        "licenses": [{"id": 1, "name": "CC BY", "url": ""}],
        "annotations": [{"id": i, "image_id": i, "category_id": c} for i, _, c in reversed(images)],
        "categories": [{"id": c, "name": name, "supercategory": "Aves"} for c, name in species],
    }
    return form | (change or {})


def test_inaturalist(tmp_path):
    categories = [(7, "Larus"), (3, "Anas")]
    train = [(11, "train_val2018/Aves/7/a.jpg", 7), (12, "train_val2018/Aves/3/b.jpg", 3)]
    (tmp_path / "train.json").write_text(json.dumps(annotations(train, categories)))
    (tmp_path / "val.json").write_text(json.dumps(annotations([(20, "train_val2018/Aves/3/c.jpg", 3)], categories)))
    source = inaturalist_source(tmp_path, {"train": tmp_path / "train.json", "test": tmp_path / "val.json"})
    assert source.classes == ["Anas", "Larus"]  # in the order of their ids
    assert listed(source) == [
        ("test", "train_val2018/Aves/3/c.jpg", 0),
        ("train", "train_val2018/Aves/3/b.jpg", 0),
        ("train", "train_val2018/Aves/7/a.jpg", 1),
    ]
    assert "test: the published val" in source.notes[0]


def test_species_of_equal_names_are_told_apart(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(annotations([(1, "a.jpg", 0)], [(0, "Gull"), (1, "Gull")])))
    assert inaturalist_source(tmp_path, {"train": tmp_path / "t.json"}).classes == ["0 Gull", "1 Gull"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": []}, "has no 'annotations'"),
        ({"categories": []}, "has no 'categories'"),
        ({"images": [{"id": 1}]}, "no 'file_name' of type str"),
        ({"images": [{"id": 9, "file_name": "x.jpg"}]}, "image 9 .* has no annotation"),
        ({"images": []}, "is the file whole"),
        ({"annotations": [{"image_id": 1, "category_id": 5}]}, "unknown category 5"),
        ({"annotations": 2 * [{"image_id": 1, "category_id": 0}]}, "several annotations"),
        ({"annotations": [{"image_id": 2**70, "category_id": 0}]}, "more than 64 bits"),
    ],
)
def test_bad_annotations_are_named(tmp_path, change, message):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(annotations([(1, "a.jpg", 0)], [(0, "Gull")], change)))
    with pytest.raises(InputError, match=message):
        list(inaturalist_source(tmp_path, {"train": path}).images())


def test_json_that_is_cut_off_is_refused(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(annotations([(1, "a.jpg", 0)], [(0, "Gull")]))[:-40])
    with pytest.raises(InputError, match="not whole JSON"):
        list(inaturalist_source(tmp_path, {"train": path}).images())


def test_json_of_strangers(tmp_path):
    whole = {
        "images": [{"id": 1, "file_name": 'a"[[[\\.jpg'}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3}],
        "categories": [{"id": 3, "name": "x"}],
    }
    text = json.dumps(whole)
    path = tmp_path / "train.json"
    path.write_text(text, encoding="utf-8-sig")
    assert [image.name for image in inaturalist_source(tmp_path, {"train": path}).images()] == ['a"[[[\\.jpg']
    deep, digits = "[" * 10_000, "9" * 5_000
    for forged, message in (
        (f'{{"categories": {deep}', "nested deeper than 100 times"),
        (f'{{"licenses": [{"[0," * 200}', "nested deeper than 100 times"),
        (f'{{"categories": [{{"id": {digits}}}]}}', "a number of more than 1000 digits"),
        (text.replace('"x"', '"\\u001b[31m"'), "characters that cannot be shown"),
        (text.encode("utf-16"), "not whole JSON"),
        (text.replace("x", "é").encode("latin-1"), r"not whole JSON \(lexical error: invalid bytes in UTF8 string"),
    ):
        path.write_bytes(forged if isinstance(forged, bytes) else forged.encode())
        with pytest.raises(InputError, match=message) as error:
            list(inaturalist_source(tmp_path, {"train": path}).images())
        assert str(error.value).isprintable()
