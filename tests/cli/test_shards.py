import subprocess
import sys
from pathlib import Path

import pytest

from cbd_fast.cli.main import main
from cbd_fast.cli.shards import make_parser
from cbd_fast.registry import SOURCES
from cbd_fast.shards.manifest import read_manifest

REPOSITORY = Path(__file__).parents[2]

PLUGIN = '''
import csv
from pathlib import Path

from cbd_fast import SOURCES
from cbd_fast.shards.sources.base import Source, file_image


@SOURCES.register("table")
class Table:
    """A CSV file with a column of files and one of classes, 100 % ours."""

    @staticmethod
    def add_arguments(parser):
        parser.add_argument("table", type=Path, metavar="CSV")
        parser.add_argument("--column", default="class")

    @staticmethod
    def open(arguments):
        with open(arguments.table, newline="") as file:
            lines = list(csv.DictReader(file))
        classes = sorted({line[arguments.column] for line in lines})
        root = arguments.table.parent

        def images():
            for line in lines:
                yield file_image("train", root, line["file"], classes.index(line[arguments.column]))

        return Source(kind="table", classes=classes, images=images, roots=[root])
'''


@pytest.fixture
def table(pieces, tmp_path):
    """A table of three ants and one bee, and the plugin that reads such tables."""
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(pieces[number])
    names = ["ant", "bee", "ant", "ant"]
    lines = [f"{number}.jpg,{name}\n" for number, name in enumerate(names)]
    (tmp_path / "table.csv").write_text("file,species\n" + "".join(lines))
    (tmp_path / "my.py").write_text(PLUGIN)
    return tmp_path / "table.csv"


@pytest.fixture
def _own_source():
    """What a test registers is gone after it."""
    before = set(SOURCES)
    yield
    for name in set(SOURCES) - before:
        del SOURCES._entries[name]


def run(*argv, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["shards", *map(str, argv)])
    return ended.value.code, capsys.readouterr()


@pytest.mark.parametrize("command", [["tools/make_shards.py"], ["-m", "cbd_fast.cli.main", "shards"]])
def test_a_source_of_a_plugin_makes_shards(table, command):
    plugin, out = ["--plugin", table.with_name("my.py")], table.with_name("shards")
    arguments = [*plugin, "table", table, "--column", "species", "--imbalance", 3, "--out", out, "--workers", 1]
    done = subprocess.run(
        [sys.executable, *command, *map(str, arguments)], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(out)
    assert manifest.classes == ["ant", "bee"]
    assert manifest.splits["train"].class_counts == [3, 1]
    assert (manifest.recipe.source, manifest.recipe.options["imbalance"]) == ("table", 3)


def test_an_unknown_source_is_refused(table, capsys):
    code, shown = run("table", table, "--out", table.with_name("shards"), capsys=capsys)  # without its plugin
    assert code == 2
    assert "argument SOURCE: invalid choice: 'table'" in shown.err
    assert not table.with_name("shards").exists()


@pytest.mark.usefixtures("_own_source")
def test_a_source_of_a_plugin_is_in_the_help(table, capsys):
    code, shown = run("--help", capsys=capsys)
    assert (code, " table " in shown.out) == (0, False)
    plugin = f"--plugin={table.with_name('my.py')}"
    code, shown = run("--help", plugin, capsys=capsys)
    assert code == 0
    assert "A CSV file with a column of files and one of classes, 100 % ours" in " ".join(shown.out.split())
    code, shown = run("table", "--help", plugin, capsys=capsys)
    assert code == 0
    assert "--column" in shown.out
    assert "--imbalance" in shown.out
    assert "[--preset" not in shown.out  # none is published in this layout


@pytest.mark.usefixtures("_own_source")
def test_an_option_that_every_source_has_is_refused(table, capsys):
    plugin = table.with_name("my.py")
    plugin.write_text(PLUGIN.replace("--column", "--seed").replace('"table")', '"seeded")'))
    code, shown = run("--plugin", plugin, "digits", "--out", table.with_name("shards"), capsys=capsys)
    assert code == 2
    assert (
        shown.err == "error: source 'seeded': argument --seed: conflicting option string: --seed; rename its option\n"
    )


def test_a_fixed_source_has_nothing_to_choose(capsys):
    parser = make_parser("cbd-fast shards")
    assert parser.parse_args(["digits", "--out", "x", "--seed", "3"]).seed == 3
    with pytest.raises(SystemExit):
        parser.parse_args(["digits", "--out", "x", "--imbalance", "2"])
    assert "unrecognized arguments: --imbalance 2" in capsys.readouterr().err
    assert parser.parse_args(["cifar10", "DIR", "--out", "x", "--preset", "cifar10-lt"]).preset == "cifar10-lt"


def test_examples_in_the_help_name_the_command():
    assert "cbd-fast shards digits --out shards/digits_lt" in make_parser("cbd-fast shards").format_help()
    assert "python tools/make_shards.py digits --out shards/digits_lt" in make_parser().format_help()
