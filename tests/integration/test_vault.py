"""Keys that a real OpenBao wraps: what opens, what does not, and that its troubles are never taken for a wrong key."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from lab_backup.errors import UsageError
from lab_backup.operations.repositories import add_key, list_keys, remove_key, rotate_key
from lab_backup.repository.errors import DamagedError, WrongKeyError
from lab_backup.repository.repository import open_repository
from lab_backup.repository.unlock import read_slots
from lab_backup.security.vault import VaultAccess, VaultDeniedError, VaultError, VaultTransit, read_passphrase
from lab_backup.storage.memory import MemoryStorage
from support.engine import back_up, new_repository, restored
from support.openbao import PASSPHRASE, Bao, openbao
from support.program import Program


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    """Run one server for all."""
    with openbao(tmp_path_factory.mktemp("bao")) as server:
        yield server


def test_a_transit_key_opens_and_is_replaced(bao: Bao, tmp_path: Path) -> None:
    """An AppRole opens by the transit key, also after Vault rotated it; another transit key does not; a new wrapping replaces the old one."""
    storage, lab = MemoryStorage(), VaultTransit(bao.role, "transit/lab")
    with new_repository(storage, tmp_path, passphrase="first") as repository:
        backup = back_up(repository, b"data").backup
        made = add_key(repository, lab, label="hosts")
        assert made.kind == "vault-transit"
        remove_key(repository, next(key.id for key in list_keys(repository) if key.id != made.id))
    stored = storage.read(f"keys/{made.id}")
    assert b"127.0.0.1" not in stored
    bao.root.secrets.transit.rotate_key("lab")
    with open_repository(storage, passphrase=lab, cache_directory=tmp_path) as repository:
        assert restored(repository, backup) == b"data"
        rotated = rotate_key(repository, made.id, lab)
    assert [slot.wrapped_key.split(":")[1] for slot in read_slots(storage)] == ["v2"]
    assert rotated.label == "hosts"
    open_repository(storage, passphrase=lab, cache_directory=tmp_path).close()
    with pytest.raises(WrongKeyError, match="Vault key does not open"):
        open_repository(storage, passphrase=VaultTransit(bao.access, "transit/other"), cache_directory=tmp_path)
    slot = read_slots(storage)[0]
    storage.upload(f"keys/{slot.id}", msgspec.json.encode(msgspec.structs.replace(slot, wrapped_key="../../sys/seal")))
    with pytest.raises(DamagedError, match="is damaged"):
        open_repository(storage, passphrase=lab, cache_directory=tmp_path)


def test_its_troubles_have_names(bao: Bao) -> None:
    """Denied, unknown, out of reach: each says so, and none shows a secret."""
    denied = VaultTransit(bao.role, "transit/other")
    with pytest.raises(VaultDeniedError, match="refuses wrapping"):
        denied.wrap(bytes(32))
    with pytest.raises(VaultDeniedError, match="refuses"):
        VaultTransit(replace(bao.access, token="wrong-token"), "transit/lab").wrap(bytes(32))
    with pytest.raises(VaultError) as refused:
        VaultTransit(replace(bao.role, secret_id="not-the-secret"), "transit/lab")
    assert "not-the-secret" not in str(refused.value)
    with pytest.raises(VaultError, match="is not there"):
        VaultTransit(bao.access, "elsewhere/lab").wrap(bytes(32))
    with pytest.raises(UsageError):
        VaultTransit(bao.access, "../sys/seal")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        away = VaultAccess(f"http://127.0.0.1:{closed.getsockname()[1]}", token="t")
        with pytest.raises(VaultError, match="cannot be reached"):
            VaultTransit(away, "transit/lab").wrap(bytes(32))
    assert "wrong" not in repr(replace(bao.access, token="wrong"))


def test_a_sealed_server_says_so(tmp_path: Path) -> None:
    """A sealed server is named as sealed, not as a wrong key."""
    with openbao(tmp_path) as server:
        lab = VaultTransit(server.access, "transit/lab")
        wrapped = lab.wrap(bytes(32))
        server.root.sys.seal()
        with pytest.raises(VaultError, match="sealed"):
            lab.unwrap(wrapped)


def test_the_program_finds_vault_by_the_environment(bao: Bao, tmp_path: Path) -> None:
    """A key is added and the repository opened by an AppRole from the environment; with its secret wrong it is not a wrong key."""
    (tmp_path / "secret-id").write_text(f"{bao.role.secret_id}\n")
    lab = Program(
        tmp_path, LAB_BACKUP_REPO=str(tmp_path / "repository"), VAULT_ADDR=bao.role.address,
        VAULT_ROLE_ID=str(bao.role.role_id), VAULT_SECRET_ID_FILE=str(tmp_path / "secret-id"),
    )  # fmt: skip
    lab.ok("repo", "init", LAB_BACKUP_PASSPHRASE="correct horse")
    lab.ok("repo", "keys", "add", "--vault-transit", "transit/lab", LAB_BACKUP_PASSPHRASE="correct horse")
    lab.ok("list", LAB_BACKUP_VAULT_TRANSIT="transit/lab")
    refused = lab(
        "list", LAB_BACKUP_VAULT_TRANSIT="transit/lab", VAULT_SECRET_ID_FILE="", VAULT_SECRET_ID="wrong-secret"
    )
    assert refused.code == 1, refused
    assert "Vault" in refused.stderr
    assert "wrong-secret" not in refused.stderr
    unsafe = lab("list", LAB_BACKUP_VAULT_TRANSIT="transit/lab", VAULT_ADDR="http://vault.example:8200")
    assert (unsafe.code, "https" in unsafe.stderr) == (2, True)


@pytest.mark.parametrize("where", ["secret/lab#passphrase", "old/lab#passphrase"])
def test_a_passphrase_in_the_kv_engine_opens(bao: Bao, where: str, tmp_path: Path) -> None:
    """`repo init` and everything after it take the passphrase from Vault, in both versions of its engine; the passphrase itself opens too."""
    assert read_passphrase(bao.role, where) == PASSPHRASE
    lab = Program(
        tmp_path, LAB_BACKUP_REPO=str(tmp_path / "repository"), VAULT_ADDR=bao.role.address,
        VAULT_ROLE_ID=str(bao.role.role_id), VAULT_SECRET_ID=str(bao.role.secret_id), LAB_BACKUP_VAULT_KV=where,
    )  # fmt: skip
    lab.ok("repo", "init")
    lab.ok("list")
    lab.ok("list", LAB_BACKUP_PASSPHRASE=PASSPHRASE, LAB_BACKUP_VAULT_KV="")


def test_what_the_kv_engine_does_not_give(bao: Bao) -> None:
    """Denied, absent, not a text, not a place: each says so, and none shows what it read."""
    with pytest.raises(VaultDeniedError, match="refuses reading"):
        read_passphrase(bao.role, "secret/other#passphrase")
    with pytest.raises(VaultError, match="is not there"):
        read_passphrase(bao.access, "secret/nothing#passphrase")
    for where in ("secret/lab#nothing", "secret/lab#number"):
        with pytest.raises(VaultError, match="no text") as refused:
            read_passphrase(bao.access, where)
        assert PASSPHRASE not in str(refused.value)
    for place in ("secret", "secret/lab", "secret/../sys#x", "#x", "secret/lab#"):
        with pytest.raises(UsageError, match="is not a place"):
            read_passphrase(bao.access, place)


def test_certificates_that_cannot_be_read(bao: Bao) -> None:
    """A file of certificates that is not there is named as what is wrong, by the variable that a user knows."""
    access = replace(bao.access, address="https://127.0.0.1:1", ca="/nowhere/ca.pem")
    with pytest.raises(VaultError, match="certificates") as refused:
        read_passphrase(access, "secret/lab#passphrase")
    assert "VAULT_CACERT" in str(refused.value.hint)


def test_a_transit_key_is_the_first_key(bao: Bao, tmp_path: Path) -> None:
    """A repository is made without any passphrase, by Vault's transit key or by a key file that `repo init` makes."""
    lab = Program(
        tmp_path, LAB_BACKUP_REPO=str(tmp_path / "one"), VAULT_ADDR=bao.role.address, VAULT_TOKEN=str(bao.access.token),
        LAB_BACKUP_VAULT_TRANSIT="transit/lab",
    )  # fmt: skip
    lab.ok("repo", "init")
    lab.ok("list")
    there = {"LAB_BACKUP_REPO": str(tmp_path / "two"), "LAB_BACKUP_KEY_FILE": str(tmp_path / "key")}
    lab.ok("repo", "init", **there)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    lab.ok("list", **there)
