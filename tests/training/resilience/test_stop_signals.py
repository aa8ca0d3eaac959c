"""Signals that stop a run between two steps."""

import signal

import pytest

from adde.training.resilience.stop_signals import StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_remembered_and_the_handlers_put_back(number):
    before = signal.getsignal(number)
    stop = StopSignals()
    signal.raise_signal(number)
    assert stop.signal == number
    assert signal.getsignal(number) == before
