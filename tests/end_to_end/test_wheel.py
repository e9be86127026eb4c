"""The package as users install it: a wheel, in an environment without the checkout, used from another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from cbd_fast import __version__
from tests.helpers import REPOSITORY

CONFIG = {
    "output": "runs/first",
    "data": {"shards": "shards/digits", "num_classes": 10, "image_size": 32, "augmentation": {"crop": "pad_and_crop"}},
    "model": {"backbone": "small_convnet"},
    "optimization": {"steps": 3, "global_batch": 16},
    "runtime": {"num_threads": 1},
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The ``bin`` of an environment with the wheel and, by a path file, the packages that it needs."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    shutil.copytree(REPOSITORY / "cbd_fast", source / "cbd_fast", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", source / "dist", source], check=True, timeout=300)
    (wheel,) = (source / "dist").glob("*.whl")
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=60)
    python = environment / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True, timeout=120)
    (packages,) = environment.glob("lib/*/site-packages")
    # a path file in a folder that a path file names is not read: the checkout, installed there for editing, stays away
    (packages / "needed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return environment / "bin"


def run(installed: Path, cwd: Path, *command: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{installed}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done


def test_shards_training_and_prediction_from_another_folder(installed, tmp_path):
    where = run(installed, tmp_path, installed / "python", "-c", "import cbd_fast; print(cbd_fast.__file__)").stdout
    assert Path(where).is_relative_to(installed.parent)
    command = installed / "cbd-fast"
    assert __version__ in run(installed, tmp_path, command, "--version").stdout
    run(installed, tmp_path, command, "shards", "digits", "--out", "shards/digits", "--workers", 1)
    assert "no problems" in run(installed, tmp_path, command, "verify", "shards/digits").stdout
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(CONFIG))
    assert "student" in run(installed, tmp_path, command, "train", "--config", "first.yaml").stdout
    image = REPOSITORY / "tests" / "end_to_end" / "digit.png"
    answer = run(installed, tmp_path, command, "predict", "runs/first/student", image, "--format", "csv").stdout
    assert image.name in answer
