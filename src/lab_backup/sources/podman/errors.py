"""Failures between us and a Podman service."""

from lab_backup.errors import AccessDeniedError, BusyError, LabBackupError, NotFoundError


class PodmanError(LabBackupError):
    """Podman refused what was asked, or broke off; `status` is the HTTP status, 0 where there was no answer."""

    def __init__(self, message: str, *, hint: str | None = None, status: int = 0) -> None:
        """Keep the `status` for callers that know a way around it."""
        super().__init__(message, hint=hint)
        self.status = status


class PodmanUnreachableError(PodmanError):
    """There is no connection to the service, or it was lost."""


class PodmanNotFoundError(PodmanError, NotFoundError):
    """The container, image, volume, network, pod or secret does not exist there."""


class PodmanConflictError(PodmanError, BusyError):
    """The object is in a state, or a name in use, that does not allow what was asked."""


class PodmanAccessError(PodmanError, AccessDeniedError):
    """The service, or something before it, refuses us."""


class UnsupportedVersionError(PodmanError):
    """The service is older than what we know how to talk to."""


class CommandFailedError(PodmanError):
    """A command in a container failed, could not be started, or did not end in time."""


def refusal(status: int, what: str, said: str) -> PodmanError:
    """Return the error for an HTTP `status` that is none of success; `what` was asked, and the service `said` why not."""
    message = f"Podman cannot {what}: {said or f'HTTP status {status}'}"
    if status == 404:
        return PodmanNotFoundError(
            message, hint="check the name, and --connect: is it the right host and user?", status=status
        )
    if status == 409:
        return PodmanConflictError(message, status=status)
    if status in {401, 403}:
        return PodmanAccessError(
            message, hint="check the certificates and what stands before the service", status=status
        )
    return PodmanError(message, status=status)
