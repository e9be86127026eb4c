"""When the processes of a training stop; whole trainings that are stopped are in test_stopped_runs.py."""

import os
import signal
import threading
import time

import pytest

from cbd_fast.errors import Stopped
from cbd_fast.training.stopping import SIGNALS, Agreed, Stops, handled_by
from tests.training import joined


def handlers():
    return [signal.getsignal(signum) for signum in SIGNALS]


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_ends_at_once_what_has_nothing_to_save(signum):
    before = handlers()
    stops = Stops()
    with pytest.raises(Stopped) as raised, stops.on_signals():
        os.kill(os.getpid(), signum)
    assert raised.value.signum == signum
    assert isinstance(raised.value, KeyboardInterrupt)
    assert handlers() == before


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_waits_for_the_end_of_a_step(signum):
    stops = Stops()
    with stops.on_signals():
        stops.defer()
        assert stops.agree() == Agreed(0, False)
        os.kill(os.getpid(), signum)
        assert stops.agree().signum == signum
        with pytest.raises(Stopped):
            stops.end_at_once()


def test_a_second_sigint_ends_at_once():
    stops = Stops()
    with stops.on_signals():
        stops.defer()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # asks for the same
        with pytest.raises(KeyboardInterrupt) as raised:
            os.kill(os.getpid(), signal.SIGINT)
    assert not isinstance(raised.value, Stopped)  # which would be the one that all have agreed on


def test_a_launcher_passes_on_what_came_already(monkeypatch):
    """Who signals a whole group of processes reaches the launcher too, which then signals its own."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    stops = Stops()
    with stops.on_signals():
        stops.defer()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stops.agree().signum == signal.SIGINT
        monkeypatch.setattr("cbd_fast.training.stopping.LAUNCHER_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stops().on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_trains_without_signals():
    before, seen = handlers(), []

    def train():
        stops = Stops()
        with stops.on_signals():
            seen.append(handlers())
            stops.defer()
            stops.interrupt(signal.SIGTERM)
            seen.append(stops.agree().signum)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [before, signal.SIGTERM]


def test_another_thread_interrupts_the_main_one():
    stops = Stops()
    timer = threading.Timer(0.3, stops.interrupt, [signal.SIGTERM])
    with stops.on_signals():
        timer.start()
        with pytest.raises(Stopped):
            time.sleep(10)


def test_joining_can_be_ended_by_the_system():
    with handled_by(signal.SIG_DFL):
        assert set(handlers()) == {signal.SIG_DFL}


def test_a_loop_that_is_not_deferred_is_passed_on():
    stops = Stops()
    assert list(stops.interrupting(range(3))) == [0, 1, 2]
    stops.interrupt(signal.SIGTERM)
    assert list(stops.interrupting(range(3))) == [0, 1, 2]
    stops.defer()
    with pytest.raises(Stopped):
        list(stops.interrupting(range(3)))


@pytest.mark.parametrize("signum", SIGNALS)
def test_all_processes_stop_after_the_same_step(signum):
    """Whichever got the signal, and however far it is from the others."""

    def steps(rank):
        stops = Stops(num_processes=2)
        with stops.on_signals():
            stops.defer()
            for step in range(50):
                if rank == 1 and step == 20:
                    os.kill(os.getpid(), signum)
                time.sleep(0.001 * (step % 3 if rank else 1))
                if stopped := stops.agree().signum:
                    return step, stopped
        return None

    found = joined.run_joined(steps)
    assert found[0] == found[1] == (21, signum)


def test_all_processes_save_when_one_wants_to():
    def steps(rank):
        stops = Stops(num_processes=2)
        return [stops.agree(saves=rank == 0 and step == 3).saves for step in range(6)]

    assert joined.run_joined(steps) == dict.fromkeys((0, 1), [False] * 4 + [True, False])
