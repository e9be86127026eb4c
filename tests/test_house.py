"""The rooms of the package: imports run one way, modules and functions stay short, each thing has one word."""

import ast
import re
from pathlib import Path

import pytest

import cbd_fast
from cbd_fast.registry import BACKBONES, LOSSES, METRICS, SAMPLING, SOURCES

PACKAGE = Path(__file__).parents[1] / "cbd_fast"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES, MAX_FUNCTION_LINES = 300, 60
REGISTRIES = [BACKBONES, LOSSES, METRICS, SAMPLING, SOURCES]

# Each room imports only from those before it; rooms of one line not from each other. What lies beside the rooms
# (settings, files, errors, ...) may be imported by all and imports no room; ui only looks.
ROOMS = [
    {"ui"},
    {"shards"},
    {"loading"},
    {"config"},
    {"training"},
    {"inference", "preflight"},
    {"cli"},
]
HEIGHT = {room: height for height, rooms in enumerate(ROOMS, 1) for room in rooms}
# Commands, which call cli; and names that are imported on first use
DOORS = {"train.py", "doctor.py", "__init__.py"}
# A function that is one long table, or one loop that reads better whole
LONG_FUNCTIONS: set[str] = set()


def room_of(module: str) -> str:
    """``cbd_fast.loading.cache.decoded_cache`` is in ``loading``; what lies beside the rooms has the empty name."""
    room = module.split(".")[1] if "." in module else ""
    return room if (PACKAGE / room).is_dir() and room else ""


def imported(path: Path) -> set[str]:
    """All modules of the package that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    names = {f"cbd_fast.{name}": home for name, home in cbd_fast._HOME.items()}
    return {names.get(name, name) for name in found if name.startswith("cbd_fast.")}


def test_every_folder_is_a_room():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders == set(HEIGHT)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    if path.parent == PACKAGE and path.name in DOORS:
        return
    parts = path.relative_to(PACKAGE).parts
    here = parts[0] if len(parts) > 1 else ""
    for name in imported(path):
        there = room_of(name)
        if there != here:
            assert HEIGHT.get(there, 0) < HEIGHT.get(here, 0) or not there, f"{here or path.name} imports {name}"


@pytest.mark.parametrize("folder", ["cbd_fast", "tools", "benchmarks", "examples", "tests"])
def test_modules_are_short(folder):
    lengths = {str(path): len(path.read_text().splitlines()) for path in (PACKAGE.parent / folder).rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_are_short(path):
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            name = f"{path.relative_to(PACKAGE)}:{node.name}"
            assert length <= MAX_FUNCTION_LINES or name in LONG_FUNCTIONS, f"{name} has {length} lines"


def test_shards_need_no_torch():
    """Tools that write shards would wait seconds for it; it is imported where images are shrunk or decoded."""
    for path in (PACKAGE / "shards").rglob("*.py"):
        tree = ast.parse(path.read_text())
        names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        is_decoder = path.name == "reference_decoder.py"
        assert is_decoder or not any((name or "").split(".")[0] in ("torch", "torchvision") for name in names), path


def test_files_get_their_names_in_one_place():
    """Whatever must survive a crash goes through files.py, which waits for the disk before and after the rename."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                is_rename = node.attr in ("rename", "replace", "renames", "link")
                assert not is_rename or path.name == "files.py", f"{path}: os.{node.attr}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr != "rename", f"{path}: renames"


def test_the_environment_of_launchers_is_read_in_one_place():
    for path in MODULES:
        names = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"}
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert path.name == "processes.py" or not texts & names, path


# Words of the field's own stand in their place (image, cache, fraction, WriteOptions, TrainStep, RunContext, ...)
OLD_WORDS = re.compile(
    r"\b(pictures?|resident_\w+|resident images?|rehears\w*|tell_also|Surroundings|Unwritten|ImageMaker|"
    r"agree_on_buffers|inference_form|teachers_optimized|Wanted|Learner|sharding|num_pictures)\b"
)


@pytest.mark.parametrize("folder", ["cbd_fast", "tools", "benchmarks", "configs", "docs", "examples", "shards"])
def test_each_thing_has_one_word(folder):
    root = PACKAGE.parent / folder
    kinds = ("README.md",) if folder == "shards" else ("*.py", "*.md", "*.yaml")  # beside it are datasets
    paths = [path for kind in kinds for path in root.rglob(kind)]
    assert paths
    for path in paths:
        assert not (found := OLD_WORDS.findall(path.read_text())), f"{path}: {found}"


def test_no_test_module_imports_another():
    for path in Path(__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests"):
                last = node.module.split(".")[-1]
                assert last in ("tests", "helpers", "conftest", "training"), f"{path} imports {node.module}"


@pytest.mark.parametrize(
    "registry", [BACKBONES, LOSSES, METRICS, SAMPLING, SOURCES], ids=lambda registry: registry.kind
)
def test_every_name_is_in_the_documents_and_says_what_it_is(registry):
    page = "tools/README.md" if registry is SOURCES else "docs/training.md"
    text = (PACKAGE.parent / page).read_text()
    for name, meaning in registry.describe().items():
        assert re.search(rf"\b{name}\b", text), f"{page} does not name the {registry.kind} {name}"
        assert len(meaning) > 10, f"the {registry.kind} {name} has no docstring"
