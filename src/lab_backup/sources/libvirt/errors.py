"""Failures between us and the hypervisor."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import libvirt

from lab_backup.errors import AccessDeniedError, BusyError, LabBackupError, NotFoundError, UsageError


class HypervisorError(LabBackupError):
    """libvirt or QEMU refused what was asked; `code` is libvirt's error number (virErrorNumber), 0 where there is none."""

    def __init__(self, message: str, *, hint: str | None = None, code: int = 0) -> None:
        """Keep libvirt's `code` for callers that know a way around it."""
        super().__init__(message, hint=hint)
        self.code = code


class HypervisorUnreachableError(HypervisorError):
    """There is no connection to libvirt, or it was lost."""


class QuiesceError(LabBackupError):
    """The guest's file systems were to be frozen by all means, and could not be. Nothing was begun."""


class LostBackupError(LabBackupError):
    """The point in time that was being read is gone: the guest, the job or our claim on the VM ended. Begin anew."""


_BUSY = {libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_BLOCK_COPY_ACTIVE}
_MISSING = {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT, libvirt.VIR_ERR_NO_STORAGE_VOL}
_FORBIDDEN = {
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_AUTH_CANCELLED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    libvirt.VIR_ERR_ACCESS_DENIED,
    libvirt.VIR_ERR_OPERATION_DENIED,
}
_CONNECTION = {libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_INVALID_CONN, libvirt.VIR_ERR_NO_CONNECT}


def is_connection_loss(error: Any) -> bool:
    """Tell whether a libvirtError means that the connection is gone, and not that the request was refused."""
    return error.get_error_code() in _CONNECTION or (
        error.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR
        and error.get_error_domain() in {libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE}
    )


def translate(error: Any, doing: str) -> LabBackupError:
    """Return our error for a libvirtError that happened while `doing` something (an infinitive: `begin the backup`)."""
    code = error.get_error_code()
    text = f"cannot {doing}: {error.get_error_message()}"
    if code in _MISSING:
        return NotFoundError(text)
    if code in _FORBIDDEN:
        return AccessDeniedError(
            text, hint="run as root, or let this user manage the VMs of this libvirt (group libvirt, polkit)"
        )
    if code in _BUSY:
        return BusyError(text, hint="another operation on this VM is running; try again when it is done")
    if is_connection_loss(error):
        return HypervisorUnreachableError(text, hint="see whether libvirtd (or virtqemud) is running", code=code)
    return HypervisorError(text, code=code)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn a libvirtError in the block into ours; `doing` is an infinitive."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise translate(error, doing) from error


def refused_uri(uri: str) -> UsageError:
    """Return the error for a URI that no driver of libvirt takes."""
    return UsageError(f"{uri!r} is not a libvirt URI of QEMU", hint="name one such as qemu:///system")
