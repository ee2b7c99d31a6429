"""Signals while training: the first asks, a second Ctrl-C insists, and afterwards nobody notices."""

import os
import signal
import threading

import pytest

from bindlm.training import interruption as module
from bindlm.training.interruption import listening


@pytest.fixture(autouse=True)
def _usual_handlers():
    """A test runner may ignore SIGINT; here it is Python's own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_only_asks(number):
    with listening() as interruption:
        assert not interruption.is_requested
        os.kill(os.getpid(), number)
        assert interruption.is_requested


def test_a_second_ctrl_c_stops_at_once(monkeypatch):
    monkeypatch.setattr(module, "_SAME_PRESS_SECONDS", -1.0)
    with listening():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_a_launcher_passes_on_is_no_second_press():
    with listening() as interruption:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert interruption.is_requested


@pytest.mark.parametrize("is_asked", [False, True])
def test_handlers_are_given_back(is_asked):
    def mine(number, frame):
        raise AssertionError

    signal.signal(signal.SIGTERM, mine)
    with listening():
        if is_asked:
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is mine
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_are_given_back_after_an_error():
    with pytest.raises(RuntimeError), listening():
        raise RuntimeError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nohup, or a background job
    with listening() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert not interruption.is_requested
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_in_a_thread_nothing_is_taken_over():
    failures = []

    def work():
        try:
            with listening() as interruption:
                assert not interruption.is_requested
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
