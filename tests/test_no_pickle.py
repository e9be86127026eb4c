"""No file can make us run its code: nothing that executes what it reads is called, and malicious files do nothing."""

import argparse
import ast
import io
import json
import marshal
import os
import pickle
import shutil
import tarfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cbd_fast import Loader
from cbd_fast.cli.verify import main as verify_main
from cbd_fast.config.file import load_settings
from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError, RunError
from cbd_fast.inference.load_model import load_model
from cbd_fast.registry import SOURCES
from cbd_fast.shards.manifest import is_indexed_in_place, read_manifest
from cbd_fast.shards.reader import ShardReader
from cbd_fast.shards.sources.webdataset import TarLayout, webdataset_source
from cbd_fast.training.checkpoint import load_checkpoint, read_state, save_checkpoint
from cbd_fast.training.finished import read_result
from cbd_fast.training.model_folder import read_model
from cbd_fast.training.models import build_model
from cbd_fast.training.optim import make_optimizer
from cbd_fast.training.run_dir import is_old_run, looks_like_run
from cbd_fast.training.saved_state import State
from tests.helpers import config_of

REPOSITORY = Path(__file__).parent.parent
FOLDERS = ("cbd_fast", "tools", "benchmarks", "examples")

# Modules that execute what they read, and with which only own processes may talk to each other
MODULES = {"pickle", "_pickle", "cPickle", "shelve", "marshal", "dill", "cloudpickle", "joblib", "jsonpickle", "dbm",
           "multiprocessing"}  # fmt: skip
# Functions and classes, by the end of their dotted names
NAMES = {
    "torch.load", "torch.save", "jit.load", "jit.save", "export.load", "torch.hub", "torch.package", "load_state",
    "save_state", "read_pickle", "to_pickle", "load_state_dict_from_url", "yaml.load", "yaml.load_all",
    "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.Loader",
    "yaml.FullLoader", "yaml.UnsafeLoader", "yaml.CLoader", "yaml.CUnsafeLoader", "yaml.YAML", "ProcessPoolExecutor",
    "all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list", "send_object_list",
    "recv_object_list",
}  # fmt: skip
BUILTINS = {"eval", "exec", "compile", "__import__"}
# What may stay, with the reason
ALLOWED = {
    ("cbd_fast/training/peers.py", "gather_object"): "between the processes of one run, and of no file",
    ("cbd_fast/training/peers.py", "broadcast_object_list"): "between the processes of one run, and of no file",
    ("benchmarks/loader.py", "multiprocessing"): "a benchmark's own processes",
}


def found_in(path: Path) -> set[str]:
    """Everything forbidden that a file imports or calls."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").split(".")[0]} & MODULES
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in NAMES for each in whole if f".{each}".endswith(f".{name}")}
        elif isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            found |= {name for name in NAMES if "." in name and f".{dotted}".endswith(f".{name}")}
            found |= {node.attr} & {name for name in NAMES if "." not in name}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):  # and not model.eval()
            found |= {node.func.id} & BUILTINS
        elif isinstance(node, ast.Name):
            found |= {node.id} & {name for name in NAMES if "." not in name}
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found |= set() if isinstance(node.value, ast.Constant) and node.value.value is False else {"allow_pickle"}
        elif isinstance(node, ast.keyword) and node.arg == "weights_only":
            found.add("weights_only")
    return found


def test_nothing_that_executes_what_it_reads_is_called():
    found = {
        (str(path.relative_to(REPOSITORY)), name)
        for folder in FOLDERS
        for path in (REPOSITORY / folder).rglob("*.py")
        for name in found_in(path)
    }
    assert found == ALLOWED.keys()


@pytest.mark.parametrize(
    "text",
    ["import pickle", "import pickle as p", "from pickle import loads", "import torch\ntorch.load('x')",
     "from torch import load", "np.load('x', allow_pickle=True)", "np.load('x', allow_pickle=a)", "eval('1')",
     "yaml.load(x, yaml.Loader)", "from yaml import unsafe_load", "exec(x)", "accelerator.load_state(x)",
     "pd.read_pickle(x)", "def f():\n import marshal", "torch.jit.load(x)", "__import__('os')", "import dill.session",
     "from multiprocessing import Pool", "from concurrent.futures import ProcessPoolExecutor"],
)  # fmt: skip
def test_the_scan_sees(tmp_path, text):
    (tmp_path / "a.py").write_text(text)
    assert found_in(tmp_path / "a.py")


@pytest.mark.parametrize(
    "text",
    ["model.eval()", "np.load('x', allow_pickle=False)", "re.compile('x')", "yaml.safe_load(x)", "torch.compile(m)",
     "def f(compile):\n return compile"],
)  # fmt: skip
def test_the_scan_lets_pass(tmp_path, text):
    (tmp_path / "a.py").write_text(text)
    assert not found_in(tmp_path / "a.py")


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "executed"


@pytest.fixture
def payloads(marker) -> dict[str, bytes]:
    """Files of all formats that can execute code."""
    buffers = {name: io.BytesIO() for name in ("torch", "old torch", "npy", "npz")}
    torch.save({"weight": Evil(marker)}, buffers["torch"])
    torch.save({"weight": Evil(marker)}, buffers["old torch"], _use_new_zipfile_serialization=False)
    np.save(buffers["npy"], np.array([Evil(marker)] * 19, object), allow_pickle=True)
    np.savez(buffers["npz"], arr_0=np.array([Evil(marker)], object))
    found = {name: buffer.getvalue() for name, buffer in buffers.items()}
    found |= {f"pickle {protocol}": pickle.dumps(Evil(marker), protocol) for protocol in range(6)}
    found["marshal"] = marshal.dumps(compile(f"import os; os.mkdir({str(marker)!r})", "x", "exec"))
    found["yaml"] = f"!!python/object/apply:os.mkdir [{str(marker)!r}]\n".encode()
    found["yaml value"] = f"output: !!python/object/apply:os.mkdir [{str(marker)!r}]\n".encode()
    found["python"] = f"__import__('os').mkdir({str(marker)!r})\n".encode()
    return found


def test_the_payloads_work(payloads, marker):
    def executes(run) -> bool:
        run()
        was_there = marker.exists()
        marker.rmdir()
        return was_there

    for name, data in payloads.items():
        if name.startswith("pickle"):
            assert executes(lambda data=data: pickle.loads(data)), name
    assert executes(lambda: np.load(io.BytesIO(payloads["npy"]), allow_pickle=True))
    assert executes(lambda: torch.load(io.BytesIO(payloads["torch"]), weights_only=False))
    assert executes(lambda: yaml.unsafe_load(payloads["yaml"]))
    assert executes(lambda: exec(marshal.loads(payloads["marshal"])))


def read_shards(folder):
    for read in (read_manifest, is_indexed_in_place, lambda folder: ShardReader(folder, "train")):
        with suppress(InputError):
            read(folder)
    for options in ([], ["--quarantine"]):
        with suppress(InputError, RunError):
            verify_main([str(folder), *options])
    for layout in (TarLayout(), TarLayout(label_key="path")):
        with suppress(InputError):
            for image in webdataset_source(folder, layout).images():
                with suppress(OSError, ValueError):
                    image.read()


def test_shards(photo_shards, tmp_path, payloads, marker, capsys):
    names = [path.name for path in photo_shards.iterdir() if path.name != "skipped.csv"]
    for data in payloads.values():
        for name in names:
            folder = shutil.copytree(photo_shards, tmp_path / "copy")
            (folder / name).write_bytes(data)
            if name == "train.index.npy":  # the manifest agrees
                manifest = json.loads((folder / "dataset.json").read_text())
                manifest["splits"]["train"]["index_crc32"] = zlib.crc32(data)
                (folder / "dataset.json").write_text(json.dumps(manifest))
            read_shards(folder)
            shutil.rmtree(folder)
            assert not marker.exists(), name


def test_members_of_tars(tmp_path, payloads, marker, photo_shards):
    image = ShardReader(photo_shards, "train").read(0).tobytes()
    for payload in payloads.values():
        for evil in ("jpg", "cls", "json", "pyd", "pth", "pkl"):
            path = tmp_path / "tars" / "train-0.tar"
            path.parent.mkdir(exist_ok=True)
            with tarfile.open(path, "w") as tar:
                for name, data in {"jpg": image, "cls": b"0", "json": b"{}"}.items() | {(evil, payload)}:
                    info = tarfile.TarInfo(f"0.{name}")
                    info.size = len(payload if name == evil else data)
                    tar.addfile(info, io.BytesIO(payload if name == evil else data))
            read_shards(path.parent)
            assert not marker.exists(), evil


def test_checkpoints_and_models(tmp_path, payloads, marker):
    model = build_model("small_convnet", 3)
    optimizer = make_optimizer(model, config_of().optimization)
    whole = tmp_path / "whole"
    save_checkpoint(whole, model, optimizer, State(step=3, identity={}))
    for name in ("model.safetensors", "config.json", "result.json", "metrics.jsonl", "config.yaml"):
        (whole / name).write_bytes(b"{}")
    names = [str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()]
    assert len(names) == 8
    for data in payloads.values():
        for name in names:
            folder = shutil.copytree(whole, tmp_path / "student")
            (folder / name).write_bytes(data)
            for read in (read_state, read_result, read_model, load_model, looks_like_run):
                with suppress(InputError):
                    read(folder)
            with suppress(InputError):
                load_checkpoint(folder, model, optimizer)
            is_old_run(folder / "config.yaml")
            shutil.rmtree(folder)
            assert not marker.exists(), name


def test_configs(tmp_path, payloads, marker):
    path = tmp_path / "config.yaml"
    for data in payloads.values():
        path.write_bytes(data)
        with pytest.raises(InputError):
            load_settings(Config, path)
        text = data.decode("latin-1")
        path.write_text(config_of().to_yaml())
        with suppress(InputError):
            load_settings(Config, path, [f"model.backbone={text}"])
        assert not marker.exists()


def test_what_a_loader_goes_on_from_is_no_file(photo_shards, marker):
    with Loader(photo_shards, batch_size=4, image_size=32, device="cpu", num_threads=1) as loader:
        state = loader.state_dict()
    assert json.loads(json.dumps(state)) == state  # plain numbers and words: nobody needs a pickle for it
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_published_pickles_are_compared_with_their_sums_first(kind, tmp_path, payloads, marker, monkeypatch):
    """The official CIFAR archives are pickles: torchvision reads those of the published md5 alone."""

    def download(*arguments, **options):
        raise RuntimeError("nobody's test downloads anything")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", download)
    folder = tmp_path / "data"
    for name in ("cifar-10-batches-py", "cifar-100-python"):
        for file in ("data_batch_1", "test_batch", "batches.meta", "train", "test", "meta"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / file).write_bytes(payloads["pickle 2"])
    parser = argparse.ArgumentParser()
    SOURCES[kind].add_arguments(parser)
    with pytest.raises((InputError, RunError)):
        list(SOURCES[kind].open(parser.parse_args([str(folder)])).images())
    assert not marker.exists()
