"""Ending on request: Ctrl-C, SIGTERM and a lost terminal all let context managers clean up."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first of these signals into KeyboardInterrupt. The second only asks for patience, the third ends the clean-up.

    What was ignored when the program started (`nohup`, a job in the background) stays ignored.
    """
    count = 0

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count == 2:
            sys.stderr.write("\ncleaning up, please wait; interrupt once more to give up on that\n")
            return
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in ENDING}
    changed = [number for number in ENDING if before[number] is not signal.SIG_IGN]
    for number in changed:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, before[number])
