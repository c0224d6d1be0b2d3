"""Holding containers still for as long as it takes to read what they change: claimed, guarded, measured and bounded."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self

import msgspec

from lab_backup.errors import UsageError
from lab_backup.sources.podman import claim
from lab_backup.sources.podman.claim import PREFIX
from lab_backup.sources.podman.command import run_in_container
from lab_backup.sources.podman.connection import ANSWER_TIMEOUT, Podman
from lab_backup.sources.podman.errors import CommandFailedError, PodmanError
from lab_backup.sources.podman.guard_process import GuardProcess
from lab_backup.sources.podman.leftovers import HeldClaim, HookCommand, Leftovers, start, state, unpause

PAUSE_LIMIT = 10.0
"""Seconds that a pause may last, unless the user says otherwise: about what clients of a database wait for an answer."""

HOOK_TIMEOUT = 300.0
"""Seconds for a command before or after, unless the user says otherwise."""


class Hold(StrEnum):
    """What is done to the containers while their files are read."""

    LIVE = "live"
    PAUSE = "pause"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Hooks:
    """Commands for the shell in the container, `before` and `after` its files are read, and the seconds each may take."""

    before: str | None = None
    after: str | None = None
    timeout: float = HOOK_TIMEOUT


@dataclass(frozen=True, slots=True)
class Target:
    """A container by id and name. `vanishes` says that it is removed when it stops."""

    id: str
    name: str
    vanishes: bool = False


class Freeze:
    """The right to hold some containers still; a context manager.

    Inside, all of them are claimed and watched over by a guard. Leaving it, by whatever way, frees them, runs the command
    after and gives the claims back; killing the process does the same within seconds. `held_seconds` is how long they were
    held, None where they never were; `expired` says that the guard ended a pause that took longer than its limit.
    """

    def __init__(
        self,
        podman: Podman,
        targets: Sequence[Target],
        *,
        backup: str,
        hold: Hold = Hold.PAUSE,
        hooks: Hooks | None = None,
        pause_limit: float = PAUSE_LIMIT,
    ) -> None:
        """Prepare to hold `targets`, the first of which gets the `hooks`, for the backup with the id `backup`."""
        self._podman = podman
        self._targets = tuple(targets)
        self._backup = backup
        self._hold = hold
        self._hooks = hooks or Hooks()
        self._limit = pause_limit
        self._guard: GuardProcess | None = None
        self._stack = ExitStack()
        self.held_seconds: float | None = None
        self.prepared = False
        self.warnings: list[str] = []
        vanishing = [target.name for target in targets if target.vanishes]
        if hold is Hold.STOP and vanishing:
            raise UsageError(
                f"container {vanishing[0]} was started with --rm: stopping it would remove it",
                hint="use --pause or --live",
            )

    @property
    def expired(self) -> bool:
        """Whether the containers ran on before their files were read."""
        return self._guard is not None and self._guard.expired

    @property
    def watch(self) -> GuardProcess:
        """The guard."""
        if self._guard is None:
            raise RuntimeError("nothing is held still yet")
        return self._guard

    def __enter__(self) -> Self:
        planned = tuple(HeldClaim(PREFIX + target.id[:32], self._backup) for target in self._targets)
        name = self._targets[0].name if self._targets else "volume"
        left = Leftovers(uri=self._podman.uri, claims=planned)
        self._guard = GuardProcess(name, left, pause_limit=self._limit)
        try:
            for target in self._targets:
                claim.take(self._podman, target.id, backup=self._backup)
        except BaseException:
            self._give_back()
            raise
        return self

    def prepare(self) -> None:
        """Run the command before, if there is one; from now on the one after is owed. Raises CommandFailedError."""
        if not self._targets:
            return
        first = self._targets[0].id
        if self._hooks.after is not None:
            self._update(post=HookCommand(first, self._hooks.after, self._hooks.timeout))
        if self._hooks.before is not None:
            run_in_container(self._podman, first, self._hooks.before, timeout=self._hooks.timeout)
            self.prepared = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the running ones still inside. Live ones run on; those that do not run need nothing."""
        running = [target for target in self._targets if state(self._podman, target.id) == "running"]
        if self._hold is Hold.LIVE or not running:
            yield
            return
        ids = tuple(target.id for target in running)
        began = time.monotonic()
        try:
            if self._hold is Hold.PAUSE:
                self._update(paused=ids)
                for identity in ids:
                    self._podman.post(f"containers/{identity}/pause", "pause the container")
            else:
                self._update(stopped=ids)
                for identity in ids:
                    self._podman.post(f"containers/{identity}/stop", "stop the container", timeout=ANSWER_TIMEOUT)
            yield
            self.watch.look()
        finally:
            self._let_go()
            self.held_seconds = time.monotonic() - began

    def _let_go(self) -> None:
        """Let the containers run. What fails here is the guard's to try again."""
        left = self.watch.left
        for identity in left.paused:
            unpause(self._podman, identity)
        for identity in left.stopped:
            start(self._podman, identity)
        self._update(paused=(), stopped=())

    def _update(self, **changes: object) -> None:
        self.watch.update(msgspec.structs.replace(self.watch.left, **changes))

    def _give_back(self) -> None:
        """Do what is owed, as far as it can be; the guard does the rest."""
        left = self.watch.left
        try:
            if left.paused or left.stopped:
                self._let_go()
            if left.post is not None:
                post = left.post
                self._update(post=None)
                try:
                    run_in_container(self._podman, post.container, post.command, timeout=post.timeout)
                except CommandFailedError as error:
                    self.warnings.append(f"the command after the backup: {error}")
            for held in left.claims:
                claim.release(self._podman, claim.Claim(held.volume, held.token))
            self._update(claims=())
        except PodmanError as error:
            self.warnings.append(f"the guard process cleans up what could not be: {error}")
        finally:
            self.watch.finish()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()
