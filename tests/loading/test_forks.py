import copy
import os
import pickle
import subprocess
import sys

import pytest

from cbd_fast import Loader
from cbd_fast.loading.forks import OwnProcess, watch_forks
from tests.helpers import OPTIONS, REPOSITORY, with_bad_images


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["torch", "dali"])
def test_nothing_hangs_however_a_process_with_loaders_forks(photo_shards, tmp_path, decoder):
    damaged, _ = with_bad_images(photo_shards, tmp_path, 2)
    methods = ["fork", "forkserver", "spawn"] if decoder == "dali" else ["fork"]
    arguments = [photo_shards, decoder, damaged, *methods]
    command = [sys.executable, "tests/loading/forks_program.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_loader_is_not_sent_to_another_process(photo_shards, send):
    with (
        Loader(photo_shards, **OPTIONS) as loader,
        pytest.raises(TypeError, match=r"a Loader cannot be .*; open one there with the same arguments"),
    ):
        send(loader)


def exit_code_of(child):
    process_id = os.fork()
    if not process_id:
        try:
            child()
        finally:
            os._exit(9)
    return os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1])


def test_what_is_watched_is_told_in_the_child_alone():
    class Thing:
        process_id = None

        def enter_child(self):
            self.process_id = os.getpid()

    thing = Thing()
    watch_forks(thing)
    assert exit_code_of(lambda: os._exit(int(thing.process_id == os.getpid()))) == 1
    assert thing.process_id is None


@pytest.mark.parametrize(("raised", "code"), [(None, 1), (SystemExit(3), 3), (SystemExit("bye"), 1), (KeyError(), 1)])
def test_a_child_ends_where_it_comes_out_of_a_call(raised, code):
    process = OwnProcess("Loader")

    def fork():
        codes.append(exit_code_of(lambda: process.call(leave)))
        return "parent"

    def leave():
        if raised:
            raise raised

    codes = []
    assert process.call(fork) == "parent"
    assert codes == [code]
