"""Sessions that are kept for the next call, at most a given number, and dropped when one of them fails."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lab_backup.storage.base import StorageError
from lab_backup.storage.smb.errors import FAILURES, status_of
from lab_backup.storage.smb.session import Login, ShareSession

_SESSION_ENDED = {0xC0000203, 0xC000035C, 0xC00000C9, 0xC0000128, 0xC0000008}
"""The server answers, but the login, the share or its files are gone: only a new session helps."""


class SessionPool:
    """Up to `size` sessions with `login`; further callers wait for one."""

    def __init__(self, login: Login, size: int) -> None:
        """Connect nothing yet."""
        self._login = login
        self._idle: list[ShareSession] = []
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(size)
        self._closed = False

    @contextmanager
    def session(self) -> Iterator[ShareSession]:
        """Lend a session. It is kept for others unless its connection or login ended, as far as the error tells."""
        with self._free:
            session = self._take()
            keep = False
            try:
                yield session
                keep = True
            except FAILURES as error:
                keep = status_of(error) not in {None, *_SESSION_ENDED}
                raise
            except StorageError:
                keep = True  # ours, raised between two answers
                raise
            finally:
                self._put(session, keep=keep)

    def close(self) -> None:
        """Log off everywhere; later calls fail."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    def _take(self) -> ShareSession:
        with self._lock:
            if self._closed:
                raise StorageError(f"the storage on {self._login.host} is closed")
            while self._idle:
                session = self._idle.pop()
                if session.alive:
                    return session
        return ShareSession(self._login)

    def _put(self, session: ShareSession, *, keep: bool) -> None:
        stale: list[ShareSession] = []
        with self._lock:
            keep = keep and session.alive and not self._closed
            if keep:
                self._idle.append(session)
            elif not self._closed:
                # What ended one session, a restart of the server, ended its neighbours.
                stale, self._idle = self._idle, []
        if not keep:
            for other in [session, *stale]:
                other.drop()
