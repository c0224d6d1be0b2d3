"""What a service finds out by itself when it starts: whether it has an administrator, and what hosts there are."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select

from lab_backup.api.routers.auth import SETUP
from lab_backup.catalog.base import Session, Sessions
from lab_backup.catalog.people import LoginSession, Setting, User
from lab_backup.catalog.places import KvmHost, PodmanHost
from lab_backup.errors import LabBackupError, NotFoundError, UsageError
from lab_backup.operations.inventory import list_containers, list_vms
from lab_backup.security.passwords import check_password, hash_password
from lab_backup.security.roles import Role
from lab_backup.security.tokens import digest, new_secret
from lab_backup.sources.podman.address import default_service

LIBVIRT = "qemu:///system"
USERNAME = "LAB_BACKUP_ADMIN_USERNAME"
PASSWORD_FILE = "LAB_BACKUP_ADMIN_PASSWORD_FILE"  # noqa: S105  the name of a variable


@dataclass(frozen=True, slots=True)
class FirstAdministrator:
    """Who administers the service from its first start on, where nobody is there to follow a link."""

    username: str
    password_file: Path


def setup_token(sessions: Sessions, first: FirstAdministrator | None) -> str | None:
    """Make the first administrator, or a token for the link by which a person does; None where there are users. Raises UsageError."""
    with sessions() as session:
        if session.scalar(select(func.count()).select_from(User)):
            return None
        if first is not None:
            session.add(_administrator(first))
            session.commit()
            return None
        token = new_secret()
        session.merge(Setting(name=SETUP, value={"hash": digest(token)}))
        session.commit()
        return token


def _administrator(first: FirstAdministrator) -> User:
    try:
        password = first.password_file.read_text().splitlines()[0]
    except (OSError, IndexError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the file {first.password_file} in {PASSWORD_FILE} holds no password that can be read"
        ) from error
    check_password(password, known=(first.username,))
    return User(username=first.username, role=Role.ADMIN, password_hash=hash_password(password))


def find_local_hosts(sessions: Sessions) -> list[str]:
    """Add libvirt and Podman of this machine where they answer and no host of that kind is known; return what was found."""
    found = []
    with sessions() as session:
        if not session.scalar(select(func.count()).select_from(KvmHost)):
            try:
                vms = list_vms(LIBVIRT)
                session.add(KvmHost(name="this machine", uri=LIBVIRT))
                found.append(f"libvirt with {len(vms)} VMs")
            except LabBackupError:
                pass
        if not session.scalar(select(func.count()).select_from(PodmanHost)):
            service = default_service()
            try:
                containers = list_containers(service)
                session.add(PodmanHost(name="this machine", uri=service))
                found.append(f"Podman with {len(containers)} containers")
            except LabBackupError:
                pass
        session.commit()
    return found


def reset_password(session: Session, username: str, password: str) -> None:
    """Give a user a new password, let them in again, and end their sessions. The caller commits. Raises NotFoundError, WeakPasswordError."""
    user = session.scalars(select(User).where(User.username == username)).one_or_none()
    if user is None:
        raise NotFoundError(f"there is no user {username}")
    check_password(password, known=(username, user.email))
    user.password_hash, user.enabled, user.failures, user.locked_until = hash_password(password), True, 0, None
    user.totp, user.totp_confirmed = None, False
    for kept in session.scalars(select(LoginSession).where(LoginSession.user_id == user.id)):
        session.delete(kept)
