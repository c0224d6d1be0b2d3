"""Keys and key slots: what opens, what does not, and that no secret shows."""

import hashlib
import hmac
import secrets

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.errors import UsageError
from lab_backup.repository import keys as module
from lab_backup.repository.errors import DamagedError, WrongKeyError
from lab_backup.repository.keys import (
    KEY,
    KeyFile,
    KeySlot,
    RepositoryKeys,
    derive,
    is_recovery_key,
    key_file_slot,
    passphrase_slot,
    plain_slot,
)

ID = "0123456789abcdef0123456789abcdef"
KEYS = RepositoryKeys(bytes(range(32)), bytes(range(32, 64)))


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make new slots cheap to open: the cost is no matter of these tests."""
    monkeypatch.setattr(module, "MEMORY_KIB", 32)
    monkeypatch.setattr(module, "ITERATIONS", 1)
    monkeypatch.setattr(module, "SCRYPT_MEMORY_KIB", 16)


def slot(passphrase: str) -> KeySlot:
    """Return a slot for `KEYS`."""
    return passphrase_slot(KEYS, passphrase, ID, label="test", created="2026-01-01T00:00:00Z")


def test_all_keys_differ() -> None:
    """Every purpose has a key of its own, of 32 bytes, and none is a root key."""
    keys = [KEYS.chunk_id, KEYS.node_id, KEYS.data, KEYS.tree, KEYS.metadata, KEYS.master, KEYS.identity]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {KEY}


def test_ids_need_only_the_identity_key() -> None:
    """Another repository may share ids without sharing a key that decrypts."""
    other = RepositoryKeys(secrets.token_bytes(KEY), KEYS.identity)
    assert (other.chunk_id, other.node_id) == (KEYS.chunk_id, KEYS.node_id)
    assert not {other.data, other.tree, other.metadata} & {KEYS.data, KEYS.tree, KEYS.metadata}


def hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    """Return 32 bytes of HKDF-SHA256 as RFC 5869 writes it down."""
    pseudo_random = hmac.digest(salt or bytes(32), key, "sha256")
    return hmac.digest(pseudo_random, info + b"\x01", "sha256")


def test_derivation_is_that_of_the_format() -> None:
    """The derived keys are those that docs/format/keys.md names."""
    assert KEYS.data == hkdf(KEYS.master, b"", b"lab-backup/1/data")
    assert KEYS.tree == hkdf(KEYS.master, b"", b"lab-backup/1/tree")
    assert KEYS.metadata == hkdf(KEYS.master, b"", b"lab-backup/1/metadata")
    assert KEYS.chunk_id == hkdf(KEYS.identity, b"", b"lab-backup/1/chunk id")
    assert KEYS.node_id == hkdf(KEYS.identity, b"", b"lab-backup/1/node id")
    assert derive(KEYS.metadata, "object", salt=b"s" * 32) == hkdf(KEYS.metadata, b"s" * 32, b"lab-backup/1/object")


def test_slot_round_trip() -> None:
    """The passphrase opens its slot, also after a way through JSON; another one, or none, does not."""
    stored = msgspec.json.decode(msgspec.json.encode(slot("right")), type=KeySlot)
    assert stored.intact
    assert stored.open("right", ID) == KEYS
    assert stored.open("wrong", ID) is None
    assert stored.open(None, ID) is None
    assert stored.open("right", ID[::-1]) is None, "a slot opens in its own repository only"


@pytest.mark.parametrize(
    "change", [{"salt": b"x" * 32}, {"nonce": b"y" * 12}, {"iterations": 2}, {"lanes": 2}, {"id": "0" * 16}]
)
def test_changed_slot_does_not_open(change: dict[str, object]) -> None:
    """What a slot says of itself is authenticated with the keys in it, and its checksum shows the damage."""
    changed = msgspec.structs.replace(slot("right"), **change)
    assert changed.open("right", ID) is None
    assert not changed.intact


@pytest.mark.parametrize(
    "change", [{"memory_kib": 1 << 30}, {"iterations": 10**9}, {"lanes": 10**6}, {"memory_kib": 0}, {"memory_kib": -1}]
)
def test_forged_cost(change: dict[str, int]) -> None:
    """A slot that asks for a terabyte of memory, or for a year of work, is refused before any of it is spent."""
    with pytest.raises(DamagedError):
        msgspec.structs.replace(slot("right"), **change).open("right", ID)


def test_scrypt_slot() -> None:
    """A slot may use scrypt in place of Argon2id, as RFC 7914 defines it; a forged cost is no way to make us work."""
    made = passphrase_slot(KEYS, "right", ID, label="test", created="2026-01-01T00:00:00Z", kdf="scrypt")
    stored = msgspec.json.decode(msgspec.json.encode(made), type=KeySlot)
    assert stored.kind == "scrypt"
    assert (stored.open("right", ID), stored.open("wrong", ID)) == (KEYS, None)
    key = hashlib.scrypt(b"right", salt=stored.salt, n=16, r=8, p=1, dklen=32)
    bound = f"lab-backup/1/slot/{ID}/1/{stored.id}/scrypt/16/1/1/{stored.salt.hex()}".encode()
    assert AESGCM(key).decrypt(stored.nonce, stored.wrapped, bound) == KEYS.master + KEYS.identity
    with pytest.raises(DamagedError):
        msgspec.structs.replace(stored, memory_kib=1 << 30).open("right", ID)
    assert msgspec.structs.replace(stored, memory_kib=15).open("right", ID) is None


def test_key_file_slot() -> None:
    """A key file opens its slot, by the derivation that docs/format/keys.md gives, and its own repository only."""
    file = KeyFile(bytes(range(100, 150)))
    made = key_file_slot(KEYS, file, ID, label="host", created="2026-01-01T00:00:00Z")
    stored = msgspec.json.decode(msgspec.json.encode(made), type=KeySlot)
    assert stored.intact
    assert stored.open(file, ID) == KEYS
    assert stored.open(KeyFile(file.data + b"x"), ID) is None
    assert stored.open(file, ID[::-1]) is None
    key = hkdf(file.data, stored.salt, b"lab-backup/1/key file")
    bound = f"lab-backup/1/slot/{ID}/1/{stored.id}/key-file/0/0/0/{stored.salt.hex()}".encode()
    assert AESGCM(key).decrypt(stored.nonce, stored.wrapped, bound) == KEYS.master + KEYS.identity


def test_no_secret_is_tried_on_a_slot_of_another_kind() -> None:
    """A passphrase opens no key file's slot, a key file no passphrase's, and neither a plain one, whatever a slot says of itself."""
    file = KeyFile(b"k" * 32)
    by_file = key_file_slot(KEYS, file, ID, label="", created="")
    for kind in ("argon2id", "scrypt", "plain"):
        assert msgspec.structs.replace(by_file, kind=kind).open(file, ID) is None
    assert by_file.open("k" * 32, ID) is None
    assert plain_slot(KEYS, created="").open("right", ID) is None
    assert plain_slot(KEYS, created="").open(file, ID) is None


@pytest.mark.parametrize("size", [0, 31, 64 * 1024 + 1])
def test_what_is_no_key_file(size: int) -> None:
    """Too few bytes could be guessed, too many are some other file."""
    with pytest.raises(UsageError):
        KeyFile(bytes(size))


def test_plain_slot() -> None:
    """A repository without encryption opens without a passphrase, and its slot can be told from a damaged one."""
    stored = msgspec.json.decode(msgspec.json.encode(plain_slot(KEYS, created="")), type=KeySlot)
    assert stored.open(None, ID) == KEYS
    assert stored.intact
    with pytest.raises(DamagedError):
        msgspec.structs.replace(stored, wrapped=b"short").open(None, ID)


def test_empty_passphrase() -> None:
    """An empty passphrase is refused."""
    with pytest.raises(UsageError):
        slot("")


@given(
    master=st.binary(min_size=KEY, max_size=KEY),
    identity=st.binary(min_size=KEY, max_size=KEY),
    noise=st.lists(
        st.tuples(st.integers(0, 140), st.sampled_from([" ", "-", "\n", "\t", "\r\n", " - ", "\u00a0", "\u2013"]))
    ),
    lower=st.booleans(),
    dashes=st.booleans(),
)
def test_recovery_key_round_trip(
    master: bytes, identity: bytes, noise: list[tuple[int, str]], *, lower: bool, dashes: bool
) -> None:
    """The recovery key gives back the keys however people type case, blanks and dashes."""
    keys = RepositoryKeys(master, identity)
    text = keys.recovery_key()
    text = text if dashes else text.replace("-", " ")
    for at, extra in noise:
        text = text[:at] + extra + text[at:]
    assert is_recovery_key(text)
    assert RepositoryKeys.from_recovery_key(text.lower() if lower else text) == keys


@pytest.mark.parametrize("text", ["", "LABKEY", "LABKEY2-AAAAA", "correct horse", "my LABKEY1-"])
def test_passphrase_is_no_recovery_key(text: str) -> None:
    """What does not start like a recovery key is a passphrase."""
    assert not is_recovery_key(text)


@given(at=st.integers(8, 130), letter=st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))
def test_recovery_key_typing_error(at: int, letter: str) -> None:
    """One wrong character is noticed, wherever it is."""
    text = KEYS.recovery_key()
    if text[at] in {"-", letter}:
        return
    with pytest.raises(WrongKeyError):
        RepositoryKeys.from_recovery_key(text[:at] + letter + text[at + 1 :])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "LABKEY1-",
        "LABKEY1-AAAAA",
        "LABKEY1-01890",
        "LABKEY1-ÄÖÜßß",
        KEYS.recovery_key() + "-AAAAA",
        KEYS.recovery_key()[:-6],
    ],
)
def test_recovery_key_nonsense(text: str) -> None:
    """A text that is too short, too long or of other letters is no recovery key."""
    with pytest.raises(WrongKeyError):
        RepositoryKeys.from_recovery_key(text)


def test_no_secret_shows() -> None:
    """Neither keys nor slots show a key or a passphrase where they are printed."""
    shown = f"{KEYS!r} {KEYS} {slot('letmein')!r} {plain_slot(KEYS, created='')!r} {KeyFile(KEYS.master)!r}"
    for secret in (KEYS.master, KEYS.identity):
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown
    assert "letmein" not in shown
