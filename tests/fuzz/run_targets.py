"""Configs, checkpoints and models of strangers, read by what training and inference read them with."""

import hashlib
import json
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import yaml

from cbd_fast.config.file import load_settings
from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError, RunError
from cbd_fast.training.checkpoint import load_checkpoint, read_state, save_checkpoint, save_weights
from cbd_fast.training.finished import read_finished, read_result, save_finished
from cbd_fast.training.model_folder import make_model_card, read_model, write_model_card
from cbd_fast.training.models import build_model
from cbd_fast.training.optim import make_optimizer
from cbd_fast.training.saved_state import Result, State
from tests.helpers import SMALL_RUN, config_of

from .mutate import json_bytes, mutated_bytes, mutated_json, odd_value

OURS = (InputError, RunError)
TOKENS = (
    "!!python/object/apply:os.system ['touch {marker}']", "!!python/name:os.system", "!!python/object/new:type []",
    "!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]", "!!timestamp 2001-12-14", "2001-12-14", "12:30:45", "0o17", "010",
    "0x1F", "1_000", ".inf", ".nan", "~", "${HOME}", "$(id)", "*a", "&a x", "&a [*a]", "<<: *a", "<<: {a: 1}",
    "- - - -", "[" * 50, "[" * 5000, "{" * 5000, "? a", "|2\n x", ">\n x", "%YAML 9.9\n---\n", "---\n", "...\n", "\t",
    "\x85", "\u2028", "\x1b[2J", "\0", "\ufeff", "# ", "'", '"', "a: b: c", "9" * 5000, "1e400", "yes", "on", "null",
    "- ", ": ", "\n", "  ",
)  # fmt: skip
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


class ConfigTarget:
    """config.yaml."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "config"
        self.folder.mkdir(exist_ok=True)
        self.settings = config_of("run", "shards").model_dump(mode="json")
        self.text = config_of("run", "shards").to_yaml()
        self.small = yaml.safe_dump({"output": "run", **SMALL_RUN})
        self.files = {"config.yaml": self.text.encode()}

    def mutate(self, rng: np.random.Generator) -> dict[str, bytes]:
        """Files by name."""
        text = (self.text, self.small)[rng.integers(2)]
        kind = rng.integers(5)
        if kind == 0:
            return {"config.yaml": mutated_bytes(rng, text.encode())}
        if kind == 1:
            with suppress(Exception):  # what YAML cannot write is no case
                return {
                    "config.yaml": yaml.safe_dump(mutated_json(rng, self.settings)).encode("utf-8", "surrogatepass")
                }
        if kind == 2:
            return {"config.yaml": json_bytes(rng, mutated_json(rng, self.settings))}
        if rng.integers(200) == 0:
            text = BOMB + text
        for _ in range(1 + rng.integers(3)):
            token = TOKENS[rng.integers(len(TOKENS))].replace("{marker}", str(self.folder / "executed"))
            lines = text.splitlines(keepends=True)
            number = int(rng.integers(len(lines)))
            place = int(rng.integers(len(lines[number]) + 1))
            value = lines[number].find(": ") + 2
            place = value if rng.integers(2) and value > 1 else place
            lines[number] = lines[number][:place] + token + lines[number][place:] * int(rng.integers(2))
            text = "".join(lines)
        return {"config.yaml": text.encode("utf-8", "surrogatepass")}

    def check(self, case: int) -> None:
        """Reads the settings."""
        with suppress(*OURS):
            load_settings(Config, self.folder / "config.yaml")
        with suppress(*OURS):
            rng = np.random.default_rng(case)
            load_settings(Config, self.folder / "config.yaml", [f"optimization.steps={odd_value(rng)}"])
        assert not (self.folder / "executed").exists()


class CheckpointTarget:
    """A model's folder in a run: a checkpoint, and all of a finished model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "student"
        self.model = build_model("small_convnet", 3)
        config = config_of("run", "shards")
        self.optimizer = make_optimizer(self.model, config.optimization)
        if not self.folder.exists():
            self._write(config)
        self.checkpoint = next(path.name for path in self.folder.iterdir() if path.name.startswith("checkpoint-"))
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        self.files = {str(path.relative_to(self.folder)): path.read_bytes() for path in files}

    def _write(self, config: Config) -> None:
        self.folder.mkdir()
        self.model(torch.rand(2, 3, 16, 16)).logits.square().mean().backward()
        self.optimizer.step()
        save_weights(self.folder / "model.safetensors", self.model)
        card = make_model_card(
            self.model, config, name="student", stage="student", classes=["a", "b", "c"], train_counts=[3, 2, 1],
            training={"num_steps": 7},
        )  # fmt: skip
        write_model_card(self.folder, card)
        save_finished(self.folder, Result(identity={"images": "12ab"}, metrics={"top1": 50.0}, seconds=1.5))
        save_checkpoint(self.folder, self.model, self.optimizer, State(step=3, identity={"images": "12ab"}))

    def mutate(self, rng: np.random.Generator) -> dict[str, bytes]:
        """Files by name."""
        name = sorted(self.files)[rng.integers(len(self.files))]
        data = self.files[name]
        kind = rng.integers(4)
        if kind == 0:
            return {name: mutated_bytes(rng, data)}
        if name.endswith(".json"):
            return {name: forged_json(rng, mutated_json(rng, json.loads(data)), is_summed=kind != 1)}
        data = mutated_tensors(rng, data)
        return {name: data, **self._with_sums(name, data)}

    def _with_sums(self, name: str, data: bytes) -> dict[str, bytes]:
        """The JSON files that know a file, with what it is now."""
        known = {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        beside = f"{self.checkpoint}/state.json" if "/" in name else "result.json"
        content = json.loads(self.files[beside])
        content["files"][Path(name).name] = known
        if "/" in name:
            return {beside: checked(content)}
        card = json.loads(self.files["config.json"]) | {"weights": known}
        content["files"]["config.json"] = {
            "num_bytes": len(checked(card)),
            "sha256": hashlib.sha256(checked(card)).hexdigest(),
        }
        return {"config.json": checked(card), beside: checked(content)}

    def check(self, case: int) -> None:
        """Reads everything that is there."""
        for read in (read_state, read_result, lambda folder: read_finished(folder, reads_all=True), read_model):
            with suppress(*OURS):
                read(self.folder)
        with suppress(*OURS):
            load_checkpoint(self.folder, self.model, self.optimizer)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in self.model.state_dict().values())


def checked(content: dict) -> bytes:
    """A file of values that begins with its sum."""
    content = {key: value for key, value in content.items() if key != "sha256"}
    rest = "\n" + json.dumps(content, indent=1, ensure_ascii=False).removeprefix("{\n") + "\n"
    digest = hashlib.sha256(rest.encode("utf-8", "surrogatepass")).hexdigest()
    return f'{{\n "sha256": "{digest}",{rest}'.encode("utf-8", "surrogatepass")


def forged_json(rng: np.random.Generator, content: object, *, is_summed: bool) -> bytes:
    """A JSON file of a run, with the sum that goes with it."""
    return checked(content) if is_summed and isinstance(content, dict) else json_bytes(rng, content)


def mutated_tensors(rng: np.random.Generator, data: bytes) -> bytes:
    """A safetensors file with another header, or other tensors."""
    length = struct.unpack("<Q", data[:8])[0]
    header, tensors = json.loads(data[8 : 8 + length]), data[8 + length :]
    kind = rng.integers(5)
    if kind == 0:
        lengths = (0, 1, length + 1, 8 << 30, 2**63, 2**64 - 1)
        return struct.pack("<Q", lengths[rng.integers(len(lengths))]) + data[8:]
    if kind == 1:
        return data[: 8 + length] + mutated_bytes(rng, tensors)
    if kind == 2:
        name = sorted(set(header) - {"__metadata__"})[rng.integers(len(set(header) - {"__metadata__"}))]
        header[name][("dtype", "shape", "data_offsets")[rng.integers(3)]] = odd_value(rng)
    elif kind == 3:
        header = mutated_json(rng, header)
    else:
        header["__metadata__"] = {"format": "pt", "a": str(odd_value(rng))}
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + tensors
