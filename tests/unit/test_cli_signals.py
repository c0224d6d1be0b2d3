"""Signals: the first lets everything clean up, the second is patient, the third is obeyed."""

import signal
from contextlib import suppress

import pytest

from lab_backup.cli.signals import ENDING, interruptible


@pytest.mark.parametrize("number", ENDING)
def test_the_first_signal_lets_context_managers_clean_up(number: signal.Signals) -> None:
    """SIGINT, SIGTERM and SIGHUP all arrive as KeyboardInterrupt, and the handlers of before come back."""
    before = signal.getsignal(number)
    cleaned = False
    try:
        with interruptible():
            try:
                signal.raise_signal(number)
            finally:
                cleaned = True
    except KeyboardInterrupt:
        pass
    else:
        pytest.fail("nothing was raised")
    assert cleaned
    assert signal.getsignal(number) == before


def test_an_impatient_user_interrupts_no_clean_up(capsys: pytest.CaptureFixture[str]) -> None:
    """The second signal only says that things are being cleaned up; the third ends even that."""
    steps = []
    with suppress(KeyboardInterrupt), interruptible():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            steps.append("cleaned on")
            signal.raise_signal(signal.SIGTERM)
            steps.append("never reached")
    assert steps == ["cleaned on"]
    assert "cleaning up" in capsys.readouterr().err


def test_what_nohup_ignores_stays_ignored() -> None:
    """A signal that was ignored at the start does not end the program."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
