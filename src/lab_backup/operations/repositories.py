"""Making, opening and describing repositories, and the ways to unlock them."""

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import msgspec
from platformdirs import user_cache_path

from lab_backup.errors import AmbiguousError, BusyError, NotFoundError, UsageError
from lab_backup.operations.lifecycle import who
from lab_backup.repository import repository as engine
from lab_backup.repository.codec import compressor
from lab_backup.repository.config import DEFAULT_CHUNK_SIZE, Config, check_chunk_size
from lab_backup.repository.create import create_repository
from lab_backup.repository.head import read_head
from lab_backup.repository.immutability import check_can_lock, promise, promised
from lab_backup.repository.keys import Kdf, KeyFile, KeySlot, Secret, keeper_slot, key_file_slot, passphrase_slot
from lab_backup.repository.repository import Repository
from lab_backup.repository.unlock import KEYS, read_slots
from lab_backup.storage.address import open_storage
from lab_backup.storage.base import ObjectLockedError
from lab_backup.storage.limited import LimitedStorage
from lab_backup.storage.rate import RateLimit

if TYPE_CHECKING:
    from lab_backup.storage.metered import StorageMetrics


@dataclass(frozen=True, slots=True)
class RepositoryInfo:
    """What a repository is. Sizes in bytes; counts and sizes are None where it was not opened."""

    url: str
    id: str
    version: int
    created: str
    encryption: str
    compression: str
    chunk_size: int
    grace: int
    packs: int | None = None
    chunks: int | None = None
    bytes_stored: int | None = None
    locked_for: int | None = None  # seconds


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One way to open a repository. Holds no key."""

    id: str
    kind: str
    label: str
    created: str


def _describe(url: str, config: Config) -> RepositoryInfo:
    return RepositoryInfo(
        url=url,
        id=config.id,
        version=config.version,
        created=config.created,
        encryption=config.encryption,
        compression=config.compression,
        chunk_size=config.chunk_size,
        grace=config.grace,
    )


def init_repository(
    url: str,
    *,
    passphrase: Secret | None,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    compression: str = "zstd:3",
    encryption: bool = True,
    like: Repository | None = None,
    locked_for: int = 0,
    credentials: Mapping[str, str] | None = None,
) -> RepositoryInfo:
    """Make a repository at `url`, opened by a passphrase, a key file or a keeper of keys; its backups are locked for so many seconds.

    With `like`, equal data gets equal ids as in that repository, so that copies between the two move only missing chunks: it gives the key
    of the ids and the chunk size, no key that decrypts. Raises RepositoryExistsError, UsageError; a place that is not empty is left alone.
    """
    if encryption and not passphrase:
        raise UsageError("an encrypted repository needs a passphrase", hint="give one, or say --no-encryption")
    if like is not None and like.config.encryption != "none" and not encryption:
        raise UsageError(
            "a repository without encryption would lay open the key of the other one's chunk ids",
            hint="encrypt it as well, or make it without --like",
        )
    identity = None
    if like is not None:
        identity, chunk_size = like.keys.identity, like.config.chunk_size
    # Before the folder is made: a mistake leaves nothing behind.
    check_chunk_size(chunk_size)
    compressor(compression)
    with_passphrase = passphrase if encryption else None
    storage = open_storage(url, create=True, credentials=credentials)
    try:
        if locked_for:
            check_can_lock(storage)
        config = create_repository(
            storage, passphrase=with_passphrase, chunk_size=chunk_size, compression=compression, identity=identity
        )
        if locked_for:
            with (
                TemporaryDirectory(prefix="lab-backup-") as cache,
                engine.open_repository(storage, passphrase=with_passphrase, cache_directory=Path(cache)) as made,
            ):
                return lock_backups(made, locked_for)
        return _describe(storage.url, config)
    finally:
        storage.close()


def needs_passphrase(url: str) -> bool:
    """Whether the repository at `url` is encrypted. Raises NotARepositoryError."""
    storage = open_storage(url)
    try:
        return read_head(storage).encrypted
    finally:
        storage.close()


def default_cache_directory() -> Path:
    """Return where indexes are cached: `~/.cache/lab-backup`, or what XDG_CACHE_HOME says."""
    return user_cache_path("lab-backup")


def open_repository(
    url: str,
    *,
    passphrase: Secret | None,
    cache_directory: Path | None = None,
    limit_rate: Callable[[], int | None] | None = None,
    metrics: "StorageMetrics | None" = None,
    credentials: Mapping[str, str] | None = None,
) -> Repository:
    """Open the repository at `url`; the caller closes it.

    `limit_rate` is asked every second for the bytes a second that may go up, and as many down; None: all. Calls of the storage are counted in
    `metrics`. `credentials` as in `open_storage`.

    Raises NotARepositoryError, WrongKeyError, DamagedError.
    """
    storage = open_storage(url, metrics=metrics, credentials=credentials)
    if limit_rate is not None:
        up, down = (RateLimit(limit_rate(), follow=limit_rate) for _ in range(2))
        storage = LimitedStorage(storage, upload=up, download=down)
    try:
        return engine.open_repository(
            storage, passphrase=passphrase, cache_directory=cache_directory or default_cache_directory()
        )
    except BaseException:
        storage.close()
        raise


def repository_info(repository: Repository) -> RepositoryInfo:
    """Return all about an open repository."""
    packs = [info for _, info in repository.cache.packs()]
    info = _describe(repository.storage.url, repository.config)
    return RepositoryInfo(
        **{
            name: getattr(info, name)
            for name in ("url", "id", "version", "created", "encryption", "compression", "chunk_size", "grace")
        },
        packs=len(packs),
        chunks=repository.cache.count(),
        bytes_stored=sum(pack.size for pack in packs),
        locked_for=int(promised(repository).total_seconds()),
    )


def lock_backups(repository: Repository, seconds: int) -> RepositoryInfo:
    """Promise to lock backups from now on for so long against removal by anybody, 0 for no more. Raises UsageError where the storage cannot."""
    promise(repository, timedelta(seconds=seconds), by=who())
    return repository_info(repository)


def _key_info(slot: KeySlot) -> KeyInfo:
    return KeyInfo(id=slot.id, kind=slot.kind, label=slot.label, created=slot.created)


def list_keys(repository: Repository) -> list[KeyInfo]:
    """Return the ways to open the repository, oldest first."""
    return [_key_info(slot) for slot in read_slots(repository.storage)]


def add_key(repository: Repository, secret: Secret, *, label: str, kdf: Kdf = "argon2id") -> KeyInfo:
    """Let another passphrase (derived by `kdf`) or key file open the repository. No data is rewritten."""
    if repository.config.encryption == "none":
        raise UsageError(
            "the repository is not encrypted",
            hint="its content is open to everybody who can read it; make an encrypted one",
        )
    created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    keys, repository_id = repository.keys, repository.config.id
    if isinstance(secret, KeyFile):
        slot = key_file_slot(keys, secret, repository_id, label=label, created=created)
    elif not isinstance(secret, str):
        slot = keeper_slot(keys, secret, repository_id, label=label, created=created)
    else:
        slot = passphrase_slot(keys, secret, repository_id, label=label, created=created, kdf=kdf)
    repository.storage.create(f"{KEYS}/{slot.id}", msgspec.json.encode(slot))
    return _key_info(slot)


def find_key(repository: Repository, key_id: str) -> KeyInfo:
    """Return the key that `key_id`, perhaps abbreviated, names. Raises NotFoundError, AmbiguousError."""
    return _key_info(_find(read_slots(repository.storage), key_id))


def rotate_key(repository: Repository, key_id: str, secret: Secret, *, kdf: Kdf = "argon2id") -> KeyInfo:
    """Replace a key by a new passphrase or key file under the same label; return the new one.

    The old one goes when the new one is durable, so that a crash leaves both rather than none. No data is rewritten.
    Raises NotFoundError, AmbiguousError.
    """
    old = find_key(repository, key_id)
    new = add_key(repository, secret, label=old.label, kdf=kdf)
    remove_key(repository, old.id)
    return new


def _find(slots: list[KeySlot], key_id: str) -> KeySlot:
    fitting = [slot for slot in slots if key_id and slot.id.startswith(key_id)]
    if not fitting:
        raise NotFoundError(f"the repository has no key {key_id}", hint="see: lab-backup repo keys list")
    if len(fitting) > 1:
        raise AmbiguousError(f"{key_id} fits {', '.join(slot.id for slot in fitting)}", hint="give more characters")
    return fitting[0]


def remove_key(repository: Repository, key_id: str) -> KeyInfo:
    """Take a key away. The last one stays: without any, only the recovery key would open the repository.

    Who has opened the repository with it may have kept the keys themselves: this revokes the passphrase, not them.
    `key_id` may be abbreviated. Raises NotFoundError, AmbiguousError, UsageError.
    """
    slots = read_slots(repository.storage)
    chosen = _find(slots, key_id)
    if not any(_counts(slot, chosen) for slot in slots if slot.id != chosen.id):
        raise UsageError(
            "this is the last sound key: without it nobody could open the repository",
            hint="add another one first: lab-backup repo keys add",
        )
    path = f"{KEYS}/{chosen.id}"
    stored = repository.storage.read(path)
    try:
        repository.storage.delete(path)
    except ObjectLockedError as error:
        error.hint = "it is locked like all the rest: say `repo immutable off`, and remove it when the lock has ended"
        raise
    # Two of us at once may each have seen the other's key: whoever finds none left puts his back.
    if not any(_counts(slot, chosen) for slot in read_slots(repository.storage)):
        repository.storage.create(path, stored)
        raise BusyError("somebody else is removing keys at this moment", hint="list the keys, then try again")
    return _key_info(chosen)


def _counts(slot: KeySlot, chosen: KeySlot) -> bool:
    """Whether `slot` still opens the repository without `chosen`. A plain one that was planted beside encrypted ones does not."""
    return slot.intact and (slot.kind == "plain") == (chosen.kind == "plain")


def recovery_sheet(repository: Repository) -> str:
    """Return a page to print and lock away: with it and the storage alone everything can be restored."""
    key = repository.keys.recovery_key()
    prefix, groups = key[:8], key[8:].split("-")
    lines = [" ".join(groups[at : at + 6]) for at in range(0, len(groups), 6)]
    block = "\n".join(f"    {prefix if number == 0 else ' ' * len(prefix)} {line}" for number, line in enumerate(lines))
    return textwrap.dedent("""\
        LAB BACKUP · RECOVERY SHEET

        Repository   {id}
        Address      {url}
        Made         {created}
        Printed      {printed}

        Recovery key (capital letters and the digits 2 to 7; dashes, spaces and line breaks do not matter)

        {block}

        Whoever has this page and the storage can read every backup. Keep it where the storage is not.

        To restore, on any machine with Lab Backup, put the recovery key into a file that only you can read,
        all of it on the first line, starting with LABKEY1-, and use it as the passphrase:

            lab-backup list --repo ADDRESS --passphrase-file FILE
            lab-backup restore vm BACKUP --repo ADDRESS --passphrase-file FILE --name NEW
        """).format(
        id=repository.config.id,
        url=repository.storage.url,
        created=repository.config.created,
        printed=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        block=block,
    )
