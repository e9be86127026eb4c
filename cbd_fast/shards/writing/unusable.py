"""Images of which the listing tells that they cannot be used: all are named at once, before the first is decoded."""

from cbd_fast.errors import RunError
from cbd_fast.shards.writing.catalog import Catalog
from cbd_fast.shards.writing.finalize import SKIPPED_NAME, write_skipped
from cbd_fast.shards.writing.options import WriteOptions
from cbd_fast.shards.writing.work_items import Skipped

NUM_SHOWN = 5


def check_unusable(catalog: Catalog, options: WriteOptions) -> None:
    """Lists the images that cannot be used for their labels or for how they are stored, where they are too many.

    Args:
        catalog: the images of a source.
        options: how many images may be left out.

    Raises:
        RunError: there are more than are allowed; all are in a list beside the catalog.
    """
    skipped = [Skipped(split=split, label=-1, name=name, reason=reason) for split, name, reason in catalog.unusable()]
    if len(skipped) > (num_allowed := options.num_bad_allowed(len(catalog))):
        path = catalog.path.parent / SKIPPED_NAME
        write_skipped(path, skipped)
        raise RunError(
            f"{len(skipped):,} of {len(catalog):,} images cannot be used, and {num_allowed:,} are allowed (--max-bad, "
            f"--strict): {'; '.join(map(str, skipped[:NUM_SHOWN]))}; all are in {path}"
        )
