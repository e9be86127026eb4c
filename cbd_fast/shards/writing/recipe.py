"""Which images of a source go into a dataset, and what the recipe says of it."""

from cbd_fast.shards.manifest import Recipe
from cbd_fast.shards.sources.base import Source
from cbd_fast.shards.writing.catalog import Catalog
from cbd_fast.shards.writing.options import WriteOptions
from cbd_fast.shards.writing.presets import check_preset
from cbd_fast.shards.writing.unusable import check_unusable


def choose_images(source: Source, catalog: Catalog, options: WriteOptions) -> tuple[Recipe, list[str]]:
    """Fills a catalog with the images that the options ask for.

    Args:
        source: classes and images.
        catalog: an empty catalog.
        options: which images are chosen.

    Returns:
        The recipe, and notes for people.

    Raises:
        InputError: the images are not what they should be.
        RunError: more images than are allowed cannot be used, as is known without reading them.
    """
    catalog.add(source.images(), source.classes)
    check_unusable(catalog, options)
    notes = list(source.notes)  # some are only known now
    if options.tail:
        notes += catalog.keep_long_tail(options.tail, options.seed)
    if options.preset:
        notes += check_preset(options.preset, catalog, options.tail.num_val_per_class if options.tail else 0)
    decided = {key: value for key, value in (source.options | options.recipe_options()).items() if value is not None}
    return Recipe(source=source.kind, options=decided, seed=options.seed, input_sha256=catalog.digest()), notes


def describe_changes(there: Recipe, asked_for: Recipe) -> str:
    """What differs between the recipe of what is there and the one asked for; empty if they are equal."""
    before, after = (each.model_dump(exclude={"options"}) | each.options for each in (there, asked_for))
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    return ", ".join(f"{key} {before.get(key)} there, {after.get(key)} asked for" for key in keys)
