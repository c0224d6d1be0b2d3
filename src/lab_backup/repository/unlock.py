"""From a passphrase, a key file or a recovery key to the repository's keys."""

from lab_backup.repository.config import Config
from lab_backup.repository.errors import DamagedError, WrongKeyError
from lab_backup.repository.keys import KeyFile, KeySlot, RepositoryKeys, Secret, is_recovery_key
from lab_backup.repository.one_object import read_object
from lab_backup.repository.untrusted_json import parse
from lab_backup.storage.base import ObjectNotFoundError, StorageBackend

KEYS = "keys"
HOW_TO_GIVE = (
    "give its passphrase by --passphrase-file or LAB_BACKUP_PASSPHRASE, or its key file by LAB_BACKUP_KEY_FILE"
)


def unlock(storage: StorageBackend, config: Config, secret: Secret | None) -> RepositoryKeys:
    """Return the repository's keys; `secret` may be a recovery key.

    Raises WrongKeyError where nothing fits, DamagedError where a key object is damaged and no other fits.
    """
    if isinstance(secret, str) and is_recovery_key(secret):
        keys = RepositoryKeys.from_recovery_key(secret)
        if not config.sealed_by(keys.metadata):
            raise WrongKeyError(
                f"the recovery key is not that of {storage.url}", hint="compare the repository's id with the sheet's"
            )
        return keys
    # Who can write the storage could put in plain keys of his own, to read what we write from then on. So no passphrase
    # opens what is not encrypted, and an encrypted repository believes no plain key.
    if config.encryption == "none" and secret is not None:
        raise WrongKeyError(
            f"{storage.url} is not encrypted, but a passphrase or key file was given",
            hint="if it should be encrypted, somebody has put another one in its place; if not, give none",
        )
    if config.encryption != "none" and secret is None:
        raise WrongKeyError(f"{storage.url} is encrypted", hint=HOW_TO_GIVE)
    return _open_slot(storage, config, secret)


def _open_slot(storage: StorageBackend, config: Config, secret: Secret | None) -> RepositoryKeys:
    present = read_slots(storage)
    slots = [slot for slot in present if slot.fits(secret)]
    damage = None
    for slot in slots:
        try:
            keys = slot.open(secret, config.id)
        except DamagedError as error:
            damage = error
            continue
        if keys is not None:
            return keys
        if not slot.intact:
            damage = DamagedError(
                f"key {slot.id} is damaged, and no other fits",
                hint="use another passphrase, or the recovery key from the recovery sheet",
            )
    if damage is not None:
        raise damage
    if not present:
        raise WrongKeyError(
            f"{storage.url} has no key objects left",
            hint="open it with the recovery key from its recovery sheet in place of the passphrase",
        )
    what = "key file" if isinstance(secret, KeyFile) else "passphrase" if isinstance(secret, str) else "Vault key"
    raise WrongKeyError(
        f"the {what} does not open {storage.url}",
        hint="check it, or use the recovery key from the recovery sheet",
    )


def read_slots(storage: StorageBackend) -> list[KeySlot]:
    """Return all readable key slots, oldest first; an unreadable one is passed over, since another may open."""
    slots = []
    for info in storage.list(KEYS):
        try:
            slot = parse(read_object(storage, info.path, 0, 64 * 1024), KeySlot, info.path)
        except (DamagedError, ObjectNotFoundError):
            continue
        if slot.version == 1 and info.path == f"{KEYS}/{slot.id}":
            slots.append(slot)
    return sorted(slots, key=lambda slot: slot.created)
