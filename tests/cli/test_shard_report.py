import io

from rich.console import Console

from cbd_fast.cli.shard_options import bar_on, report
from cbd_fast.cli.shards import make_parser
from cbd_fast.registry import SOURCES
from cbd_fast.shards.manifest import Manifest, Recipe, SplitRecord
from cbd_fast.shards.writing.finalize import WrittenDataset
from cbd_fast.shards.writing.work_items import Skipped


def test_nothing_of_names_reaches_the_terminal_raw(tmp_path):
    odd = "\x1b]0;evil\x07\n\u202e[red]"
    record = SplitRecord(num_images=1, class_counts=[1], index="train.index.npy", index_crc32=0, shards=[])
    manifest = Manifest(
        classes=[odd],
        splits={"train": record},
        recipe=Recipe(source="folder", options={}, seed=0, input_sha256=""),
        num_skipped=1,
        notes=[f"notes on {odd}"],
    )
    skipped = [Skipped(split="train", label=0, name=odd, reason=odd)]
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    with bar_on(console) as listener:
        listener.note(odd)
    report(WrittenDataset(manifest=manifest, skipped=skipped), tmp_path / odd, console)
    text = console.file.getvalue()
    assert all(line.isprintable() for line in text.splitlines())
    assert text.count(r"\x1b]0;evil\x07\n\u202e[red]") >= 5


def test_classes_whose_folders_hold_only_folders(tmp_path):
    for name in ("a/1/x.jpg", "a/2/x.jpg", "b/1/x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    command = ["folder", "--train", str(tmp_path), "--nested", "--out", str(tmp_path / "out")]
    arguments = make_parser().parse_args(command)
    assert len(list(SOURCES["folder"].open(arguments).images())) == 3
