"""How an operation tells how far it is. The command line draws it, a service stores it."""

from typing import Protocol


class Progress(Protocol):
    """Receives progress; its methods are quick, and `advance` may be called from several threads."""

    def start(self, total_bytes: int | None, what: str) -> None:
        """Begin a phase: `what` in words, and how many bytes it has to deal with (None: unknown)."""
        ...

    def advance(self, count: int) -> None:
        """Count so many more bytes of the phase as dealt with."""
        ...

    def note(self, text: str) -> None:
        """Tell the user something while it goes on."""
        ...


class Silent:
    """Tells nobody."""

    def start(self, total_bytes: int | None, what: str) -> None:
        """Ignore it."""

    def advance(self, count: int) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""
