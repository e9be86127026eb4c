"""Makes WebDataset shards that somebody else wrote class-balanced: indexes them where they are, untouched.

python tools/index_shards.py DIR
python tools/index_shards.py DIR --train 'train-*.tar' --test 'val-*.tar' --label-key annotation.category
python tools/index_shards.py DIR --out shards/NAME [--short-side 256]    # writes them anew instead
"""

import argparse

from cbd_fast.cli.command import run_command
from cbd_fast.cli.shard_options import (
    add_layout_options,
    add_options,
    layout_from,
    progress_on,
    report,
    write_options_from,
)
from cbd_fast.shards.sources.webdataset import webdataset_source
from cbd_fast.shards.writing.dataset_writer import write_dataset
from cbd_fast.shards.writing.index_in_place import index_dataset
from cbd_fast.ui.console import make_console

ONLY_WITH_OUT = ("imbalance", "val_per_class", "short_side", "max_side", "quality")


def main() -> None:
    """Parses the command line, indexes or rewrites the shards, prints what was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_layout_options(parser)
    add_options(parser, "webdataset", is_out_required=False)
    parser.set_defaults(source="webdataset")
    arguments = parser.parse_args()
    for name in ONLY_WITH_OUT:
        if arguments.out is None and getattr(arguments, name) is not None:
            parser.error(f"--{name.replace('_', '-')} changes what is in the shards: it needs --out")
    options = write_options_from(arguments, parser)
    source = webdataset_source(arguments.folder, layout_from(arguments))
    console = make_console()
    with progress_on(console) as progress:
        if arguments.out is None:
            place = arguments.folder
            written = index_dataset(source, place, options, num_workers=arguments.workers, progress=progress)
        else:
            place = arguments.out
            written = write_dataset(source, place, options, num_workers=arguments.workers, progress=progress)
    report(written, place, console)


if __name__ == "__main__":
    run_command(main)
