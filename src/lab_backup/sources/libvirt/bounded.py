"""Calls that must not take for ever, although what they call may."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class BackgroundCall(Generic[Result]):
    """A call that runs in a thread of its own, so that waiting for it can be given up."""

    def __init__(self, function: Callable[[], Result]) -> None:
        """Start `function`. Its thread does not keep the process from ending."""
        self._outcome: list[Result] = []
        self._error: BaseException | None = None
        self._done = threading.Event()
        threading.Thread(target=self._run, args=(function,), name="bounded-call", daemon=True).start()

    def result(self, seconds: float) -> Result:
        """Return or raise what the function did; TimeoutError where it is not done after `seconds`."""
        if not self._done.wait(seconds):
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._outcome[0]

    def _run(self, function: Callable[[], Result]) -> None:
        try:
            self._outcome.append(function())
        except BaseException as error:  # noqa: BLE001  it is raised again in the thread that waits
            self._error = error
        finally:
            self._done.set()


def within(seconds: float, function: Callable[[], Result]) -> Result:
    """Return what `function` returns, or raise TimeoutError after `seconds`; the call itself then goes on unheeded."""
    return BackgroundCall(function).result(seconds)
