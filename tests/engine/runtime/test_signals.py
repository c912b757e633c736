"""A signal is remembered, not obeyed at once."""

import os
import signal

import pytest
from ralign.engine.runtime.signals import Stopped, StopSignal

NUMBERS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_asks_to_stop(number):
    before = {n: signal.getsignal(n) for n in NUMBERS}
    try:
        stop = StopSignal()
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def test_a_stopped_run_exits_with_status_0():
    with pytest.raises(SystemExit) as caught:
        raise Stopped
    assert caught.value.code == 0
