"""A file descriptor that many threads write through."""

import os
from threading import Lock

from lab_backup.blocks import Buffer
from lab_backup.direct_io import open_direct, write_at


class Descriptor:
    """An open file; a context manager that yields its number. Closed by whoever uses it last after `close`.

    So a call that is still under way when the file is closed never writes to another file that was given the same number.
    """

    def __init__(self, number: int) -> None:
        """Own the open file `number`."""
        self._number = number
        self._direct: int | None = None
        self._lock = Lock()
        self._users = 1  # the owner, until `close`
        self._closed = False

    def __enter__(self) -> int:
        with self._lock:
            if self._closed:
                raise ValueError("the target is closed")
            self._users += 1
            return self._number

    def __exit__(self, *exc_info: object) -> None:
        self._leave()

    def close(self) -> None:
        """Close the file once nobody uses it any more; may be called several times."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
        os.close(self._number)
        if self._direct is not None:
            os.close(self._direct)

    def bypass_cache(self) -> None:
        """Let large aligned writes go past the page cache from now on, where that is possible."""
        with self as number:
            self._direct = open_direct(number)

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data` at `offset`, or raise OSError."""
        with self as number:
            write_at(number, self._direct, offset, data)
