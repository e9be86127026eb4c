"""verify_shards as users type it."""

import numpy as np

from tests.helpers import make_shards, run


def test_verify_and_quarantine(image_folder, tmp_path):
    out = tmp_path / "out"
    command = ["folder", "--train", image_folder / "train", "--test", image_folder / "test", "--out", out]
    assert make_shards(*command).returncode == 0
    for options in ([], ["--full"]):
        done = run("verify_shards", out, *options)
        assert (done.returncode, done.stdout.count("no problems")) == (0, 2)
    row = np.load(out / "train.index.npy")[5]
    with open(out / "train-000000.tar", "r+b") as file:
        file.seek(int(row["offset"]) + 300)
        file.write(b"damage")
    done = run("verify_shards", out, "--full")
    assert done.returncode == 1
    assert f"train-000000.tar: byte {int(row['offset']):,}: the bytes are not those that were indexed" in done.stdout
    done = run("verify_shards", out, "--quarantine")
    assert done.returncode == 0, done.stderr
    assert "quarantined: train 1, test 0" in done.stdout
    done = run("verify_shards", out, "--full")
    assert done.returncode == 0
    assert "1 are quarantined" in done.stdout
    assert run("verify_shards", tmp_path).returncode == 2
