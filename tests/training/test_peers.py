"""What a process of a run says when another one has ended."""

import os
import signal
import time
from contextlib import suppress

import pytest
import torch
from accelerate import Accelerator
from torch import distributed

from cbd_fast.errors import InputError, RunError, Stopped
from cbd_fast.tell_once import what_to_tell
from cbd_fast.training import peers as module
from cbd_fast.training.peers import Peers
from tests.training import joined


def exchange_for_ever():
    while True:
        distributed.all_reduce(torch.zeros(4))
        time.sleep(0.01)


def ends_with(error, num_processes=2):
    """Type and message of what each process ends with when the last one raises an error in the middle of things."""

    def train(rank):
        try:
            with Peers(Accelerator(cpu=True)).explained():
                distributed.all_reduce(torch.zeros(4))
                if rank == num_processes - 1:
                    raise error
                exchange_for_ever()
        except BaseException as raised:
            return type(raised), str(raised)

    return joined.run_joined(train, num_processes)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (InputError("val-0.tar: damaged"), InputError, "process 1: val-0.tar: damaged"),
        (RunError("too many bad images"), RunError, "process 1: too many bad images"),
        (KeyError("ours"), RunError, "process 1: 'ours'"),
        (OSError(28, "No space left on device", "/run/x"), RunError, "process 1: /run/x: No space left on device"),
        (Stopped(signal.SIGUSR1), Stopped, "stopped by SIGUSR1"),
        (KeyboardInterrupt(), Stopped, "stopped by SIGINT"),
    ],
)
def test_others_say_why_one_has_ended(error, kind, message):
    found = ends_with(error)
    assert found[1] == (type(error), str(error))
    assert found[0][0] is kind
    assert found[0][1].startswith(message)


def test_a_killed_process_is_named_within_seconds():
    def train(rank):
        began = time.monotonic()
        try:
            with Peers(Accelerator(cpu=True)).explained():
                distributed.all_reduce(torch.zeros(4))
                if rank == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                exchange_for_ever()
        except RunError as error:
            return str(error), time.monotonic() - began

    found = joined.run_joined(train)
    assert list(found) == [0]
    message, seconds = found[0]
    assert message.startswith("process 1 is gone")
    assert "the same command goes on" in message
    assert seconds < 10


def test_why_a_run_before_has_ended_is_not_told_again():
    def train(rank):
        first, second = Peers(Accelerator(cpu=True)), Peers(Accelerator(cpu=True))
        if rank == 1:
            with suppress(InputError), first.explained():
                raise InputError("of the first run")
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        with second.explained():
            exchange_for_ever()

    assert "process 1 is gone" in str(joined.run_joined(train)[0])


def test_a_process_that_does_not_answer_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.3)

    def train(rank):
        peers = Peers(Accelerator(cpu=True))
        group = distributed.new_group(timeout=module.TIMEOUT / 600)
        if rank == 1:
            time.sleep(3)
            return
        with peers.explained():
            distributed.all_reduce(torch.zeros(4), group=group)

    found = joined.run_joined(train)
    assert isinstance(found[0], RunError)
    assert "another process is gone or has not answered" in str(found[0])


def test_an_error_of_its_own_stays_what_it_is():
    def train(rank):
        with Peers(Accelerator(cpu=True)).explained():
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    assert {type(error) for error in joined.run_joined(train).values()} == {RuntimeError}


def test_what_the_first_process_cannot_do_all_refuse():
    def train(rank):
        peers, done = Peers(Accelerator(cpu=True)), []
        peers.main_first(lambda: done.append(rank))

        def refuse():
            raise InputError("run: another command (process 7) is writing there")

        try:
            peers.main_first(refuse)
        except InputError as error:
            return done, str(error)

    message = "run: another command (process 7) is writing there"
    assert joined.run_joined(train) == {0: ([0], message), 1: ([], message)}


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        (("no such folder", "no such folder"), {"no such folder"}),
        (("process 1: too many bad images", "too many bad images"), {"process 1: too many bad images"}),
        (("disk full", "too many bad images"), {"disk full", "process 1: too many bad images"}),
    ],
)
def test_every_reason_is_told_once(messages, told):
    def end(rank):
        distributed.barrier()
        text = what_to_tell(messages[rank])
        time.sleep(0.5)
        return text

    found = [text for text in joined.run_joined(end).values() if text]
    assert len(found) == len(told)
    assert set(found) == told
