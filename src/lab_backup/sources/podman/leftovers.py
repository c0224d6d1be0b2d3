"""What a backup has changed on a Podman host, and how it is taken back; the same for the backup itself and for its guard."""

import msgspec

from lab_backup.errors import LabBackupError
from lab_backup.sources.podman import claim
from lab_backup.sources.podman.claim import Claim
from lab_backup.sources.podman.command import run_in_container
from lab_backup.sources.podman.connection import Podman
from lab_backup.sources.podman.errors import PodmanError, PodmanNotFoundError


class HookCommand(msgspec.Struct, frozen=True):
    """A command for the shell in a container, and the seconds that it may take."""

    container: str
    command: str
    timeout: float


class HeldClaim(msgspec.Struct, frozen=True):
    """A claim, as it travels to the guard."""

    volume: str
    token: str


class Leftovers(msgspec.Struct, frozen=True, kw_only=True):
    """Containers (ids) that a backup has paused or stopped, the command that it owes them, and its claims."""

    uri: str
    paused: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    post: HookCommand | None = None
    claims: tuple[HeldClaim, ...] = ()

    @property
    def nothing(self) -> bool:
        """Whether all has been taken back."""
        return not (self.paused or self.stopped or self.post or self.claims)


def unpause(podman: Podman, container: str) -> None:
    """Let a container run again; one that is gone or runs already is fine. Raises PodmanError."""
    try:
        podman.post(f"containers/{container}/unpause", "unpause the container")
    except PodmanNotFoundError:
        return
    except PodmanError:
        if state(podman, container) == "paused":
            raise


def start(podman: Podman, container: str) -> None:
    """Start a container; one that is gone or runs already is fine. Raises PodmanError."""
    try:
        podman.post(f"containers/{container}/start", "start the container")
    except PodmanNotFoundError:
        return
    except PodmanError:
        if state(podman, container) != "running":
            raise


def state(podman: Podman, container: str) -> str:
    """Return `running`, `paused`, `exited`, `created`, …; `gone` where there is no such container. Raises PodmanError."""
    try:
        answer = podman.get(f"containers/{container}/json", "look at the container")
    except PodmanNotFoundError:
        return "gone"
    return str(answer["State"]["Status"])


def clean_up(podman: Podman, left: Leftovers) -> tuple[Leftovers, list[str]]:
    """Take back what can be; return what remains, and why, in words.

    Containers run before the post command is tried, which cannot run in a paused one. A post command that fails is not
    tried again: it has run. The claims go last, when the containers are free.
    """
    problems: list[str] = []
    paused, stopped, claims = list(left.paused), list(left.stopped), list(left.claims)
    for remaining, free in ((paused, unpause), (stopped, start)):
        for container in tuple(remaining):
            try:
                free(podman, container)
                remaining.remove(container)
            except LabBackupError as error:
                problems.append(str(error))
    post = left.post
    if post is not None and not (paused or stopped):
        try:
            run_in_container(podman, post.container, post.command, timeout=post.timeout)
            post = None
        except PodmanError as error:
            problems.append(f"the post command: {error}")
            post = None if error.status != 0 else post
    if not (paused or stopped or post):
        for held in tuple(claims):
            try:
                claim.release(podman, Claim(held.volume, held.token))
                claims.remove(held)
            except LabBackupError as error:
                problems.append(str(error))
    remains = Leftovers(uri=left.uri, paused=tuple(paused), stopped=tuple(stopped), post=post, claims=tuple(claims))
    return remains, problems
