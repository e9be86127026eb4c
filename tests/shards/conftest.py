"""Shards that somebody has forged: manifest and index agree, however wrong what they say is."""

import json
import shutil
import zlib

import numpy as np
import pytest


@pytest.fixture
def forge(photo_shards, tmp_path):
    """``forge(manifest=function, index=function)``: a copy of the shards after the functions have changed them.

    ``manifest`` changes the dictionary of dataset.json in place; ``index`` returns the new entries, or the bytes of
    the file. Sums of the index are those of the new one.
    """

    def make(manifest=lambda content: None, index=lambda entries: entries, split="train"):
        folder = tmp_path / "forged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(photo_shards, folder)
        content = json.loads((folder / "dataset.json").read_text())
        path = folder / content["splits"][split]["index"]
        changed = index(np.load(path))
        if isinstance(changed, bytes):
            path.write_bytes(changed)
        else:
            with open(path, "wb") as file:
                np.save(file, changed)
        content["splits"][split]["index_crc32"] = zlib.crc32(path.read_bytes())
        manifest(content)
        (folder / "dataset.json").write_text(json.dumps(content))
        return folder

    return make
