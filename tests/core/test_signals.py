"""Ctrl-C and SIGTERM: a stop is heard once, waits while weights change, and ends with the signal's
own exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunewright.core.errors import Interrupted
from tunewright.core.signals import StopFlag, watching

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are sent with os.kill")


@pytest.fixture(autouse=True)
def _signals_are_heard() -> Iterator[None]:
    """A shell starts what it puts into the background with SIGINT ignored, and what a caller
    ignores stays ignored: not what is tested here."""
    before = {
        number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_where_we_are_with_its_exit_code(number: signal.Signals) -> None:
    with pytest.raises(Interrupted) as caught, watching():
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert caught.value.exit_code == 128 + number
    assert number.name in str(caught.value)


def test_a_deferred_signal_waits_for_the_next_check() -> None:
    with watching() as stop:
        stop.deferred = True
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        done = sum(range(1000))
        assert done == 499500 and stop.signal == signal.SIGTERM
        with pytest.raises(Interrupted):
            stop.check()


def test_the_second_signal_ends_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), watching() as stop:
        stop.deferred = True
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


def test_handlers_are_put_back() -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with watching():
        assert signal.getsignal(signal.SIGTERM) not in before.values()
    assert {n: signal.getsignal(n) for n in before} == before


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    """nohup ignores SIGHUP so that a run outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with watching() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_a_thread_there_is_a_flag_that_never_fires() -> None:
    found: list[StopFlag] = []

    def work() -> None:
        with watching() as stop:
            stop.check()
            found.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].signal is None


def test_a_real_process_ends_with_128_plus_the_signal(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from tunewright.core.errors import Interrupted\n"
        "from tunewright.core.signals import watching\n"
        "try:\n"
        "    with watching():\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(30)\n"
        "except Interrupted as e:\n"
        "    sys.exit(e.exit_code)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    process.stdout.close()
