"""Labels that are texts, made into numbers of classes: by what all of a catalog's labels are, never by single ones."""

import json
import os
import sqlite3

from cbd_fast.errors import InputError, printable
from cbd_fast.shards.sources.base import MAX_GAPS, MAX_LABEL, MAX_SHOWN, same_spelling
from cbd_fast.shards.sources.label_texts import looks_like_number, shown_label

MAX_NUMBERS_AMONG_NAMES = 0.05  # fraction of the images; with more it is not clear what the labels are
MIN_IMAGES_OF_CAPTIONS, MIN_DIFFERENT_CAPTIONS = 10, 0.7  # a first shard of many classes has fewer different ones
REMEDY = "say where the class is (--label-key KEY of .json), or list the classes, one per line, with --classes FILE"

# as label_texts.is_number, for the millions of rows that are
_IS_NUMBER = (
    "(label NOT GLOB '*[^0-9]*' AND length(label) BETWEEN 1 AND 28 AND length(ltrim(label, '0')) <= 8 "
    f"AND CAST(label AS INTEGER) <= {MAX_LABEL})"
)
_LIKE_NUMBER = f"({_IS_NUMBER} OR looks_like_number(label))"


def number_labels(db: sqlite3.Connection) -> list[str]:
    """Makes numbers of all labels in a catalog, and problems of those that are of another kind than the rest.

    Whole numbers are the classes' numbers, and one that is something else is an odd one. Only where nearly all labels
    are no numbers they are names, sorted.

    Args:
        db: the catalog; labels of its images are texts, or numbers.

    Returns:
        Names of the classes.

    Raises:
        InputError: it is not clear what the labels are, they are no classes, or some numbers have no images.
    """
    db.create_function("looks_like_number", 1, looks_like_number, deterministic=True)
    db.create_function("shown_label", 1, lambda label: shown_label(str(label)), deterministic=True)
    db.execute("UPDATE image SET label = CAST(label AS TEXT) WHERE typeof(label) = 'integer' AND problem IS NULL")
    query = f"SELECT count(*), sum(NOT {_LIKE_NUMBER}) FROM image WHERE problem IS NULL"
    num_images, num_names = db.execute(query).fetchone()
    if num_images and (num_images - num_names) / num_images <= MAX_NUMBERS_AMONG_NAMES:
        return _number_names(db)
    if num_images and num_names > num_images / 2:
        raise InputError(
            f"the labels of {num_images - num_names:,} images are numbers, such as {_example(db, _LIKE_NUMBER)}, and "
            f"those of {num_names:,} are not, such as {_example(db, f'NOT {_LIKE_NUMBER}')}; {REMEDY}"
        )
    return _keep_numbers(db)


def _keep_numbers(db: sqlite3.Connection) -> list[str]:
    odd = (
        "'label ' || shown_label(label) || ' is no number of a class (0, 1, 2, ...)' || "
        "ifnull(', in ' || label_source, '')"
    )
    db.execute(f"UPDATE image SET problem = {odd}, label = -1 WHERE problem IS NULL AND NOT {_IS_NUMBER}")
    db.execute("UPDATE image SET label = CAST(label AS INTEGER) WHERE problem IS NULL")
    _refuse_captions(db, "numbers", "label_source LIKE '.%'")  # a key of .json was chosen by somebody
    query = "SELECT max(label), count(DISTINCT label) FROM image WHERE problem IS NULL"
    largest, num_different = db.execute(query).fetchone()
    if largest is not None and largest - num_different > MAX_GAPS:
        raise InputError(
            f"there are {num_different:,} different labels, but the largest is {largest}, that of "
            f"{image_of_label(db, largest)}: number the labels from 0 without gaps"
        )
    return [str(number) for number in range((largest or 0) + 1)]


def image_of_label(db: sqlite3.Connection, label: int) -> str:
    """The name of an image of a class; empty if there is none."""
    query = "SELECT split, name FROM image WHERE label = ? AND problem IS NULL ORDER BY split, name LIMIT 1"
    return "".join(f"{split}/{printable(os.fsdecode(name))}" for split, name in db.execute(query, (label,)))


def _number_names(db: sqlite3.Connection) -> list[str]:
    odd = (
        "'label ' || shown_label(label) || ' is a number, and those of the others are names' || "
        "ifnull(', in ' || label_source, '') || '; if it is one, list all with --classes FILE'"
    )
    db.execute(f"UPDATE image SET problem = {odd}, label = -1 WHERE problem IS NULL AND {_LIKE_NUMBER}")
    _refuse_captions(db, "captions or names", "TRUE")
    spellings: dict[str, list[str]] = {}
    for (text,) in db.execute("SELECT DISTINCT label FROM image WHERE problem IS NULL ORDER BY label"):
        spellings.setdefault(same_spelling(text), []).append(text)
    of_classes = sorted(spellings.values())
    db.execute("CREATE TEMP TABLE class (name TEXT PRIMARY KEY, label INTEGER)")
    rows = ((name, label) for label, names in enumerate(of_classes) for name in names)
    db.executemany("INSERT INTO class VALUES (?, ?)", rows)
    db.execute(
        "UPDATE image SET label = (SELECT class.label FROM class WHERE name = image.label) WHERE problem IS NULL"
    )
    return [names[0] for names in of_classes]


def _refuse_captions(db: sqlite3.Connection, what: str, condition: str) -> None:
    """Raises ``InputError`` if nearly every image has a label of its own."""
    query = f"SELECT count(DISTINCT label), count(*) FROM image WHERE problem IS NULL AND {condition}"
    num_different, num_images = db.execute(query).fetchone()
    if num_images >= MIN_IMAGES_OF_CAPTIONS and num_different > MIN_DIFFERENT_CAPTIONS * num_images:
        metadata = db.execute("SELECT metadata FROM image WHERE metadata IS NOT NULL LIMIT 1").fetchone()
        keys = f" ({printable(list(json.loads(metadata[0])))[:MAX_SHOWN]})" if metadata else ""
        raise InputError(
            f"{num_images:,} images have {num_different:,} different labels, such as {_example(db)}: these seem to be "
            f"{what} of images, no classes; say where the class is (--label-key KEY of .json{keys}), or list the "
            "classes, one per line, with --classes FILE"
        )


def _example(db: sqlite3.Connection, is_of_kind: str = "TRUE") -> str:
    """A label of one kind, with its image."""
    query = f"SELECT shown_label(label), split, name, label_source FROM image WHERE problem IS NULL AND {is_of_kind}"
    label, split, name, source = db.execute(f"{query} ORDER BY split, name LIMIT 1").fetchone()
    return f"{label} of {split}/{printable(os.fsdecode(name))}" + (f" (in {source})" if source else "")
