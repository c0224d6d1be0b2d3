"""Which Vault, and who we are there: from the environment, by the names that Vault's own tools use."""

import os
from collections.abc import Mapping
from pathlib import Path

from lab_backup.errors import UsageError
from lab_backup.security.vault import VaultAccess, VaultTransit, read_passphrase

REFERENCE = "vault:"
"""What a credential begins with that is not the secret itself but says where in Vault it is: `vault:mount/path#field`."""

_FIRST_LINE = 4096  # bytes; a secret id has 36


def transit(path: str, environment: Mapping[str, str]) -> VaultTransit:
    """Return the transit key `path` (`mount/key`) of the Vault that the environment names. Raises UsageError, VaultError."""
    return VaultTransit(_access(environment), path)


def passphrase(where: str, environment: Mapping[str, str]) -> str:
    """Return the passphrase at `where` (`mount/path#field`) in the KV engine of that Vault. Raises UsageError, VaultError."""
    return read_passphrase(_access(environment), where)


def resolved(secret: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return a secret, or where it is a reference what Vault has there now. Raises UsageError, VaultError."""
    return passphrase(secret.removeprefix(REFERENCE), environment) if secret.startswith(REFERENCE) else secret


def _access(environment: Mapping[str, str]) -> VaultAccess:
    address = environment.get("VAULT_ADDR") or environment.get("BAO_ADDR")
    if not address:
        raise UsageError(
            "it is not known where Vault is", hint="set VAULT_ADDR or BAO_ADDR, such as https://vault:8200"
        )
    if not address.startswith(("https://", "http://127.", "http://localhost", "http://[::1]")):
        raise UsageError("Vault is only talked to by https://, or on this machine", hint="correct VAULT_ADDR")
    token = environment.get("VAULT_TOKEN") or environment.get("BAO_TOKEN")
    role_id, secret_id = environment.get("VAULT_ROLE_ID"), _secret_id(environment)
    if role_id and secret_id:
        token = None
    elif not token:
        raise UsageError(
            "Vault needs a token or an AppRole",
            hint="set VAULT_TOKEN, or VAULT_ROLE_ID and VAULT_SECRET_ID or VAULT_SECRET_ID_FILE",
        )
    return VaultAccess(
        address=address,
        token=token,
        role_id=role_id,
        secret_id=secret_id,
        ca=environment.get("VAULT_CACERT") or environment.get("BAO_CACERT") or None,
        namespace=environment.get("VAULT_NAMESPACE") or environment.get("BAO_NAMESPACE") or None,
    )


def _secret_id(environment: Mapping[str, str]) -> str | None:
    file = environment.get("VAULT_SECRET_ID_FILE")
    if not file:
        return environment.get("VAULT_SECRET_ID") or None
    try:
        with Path(file).open() as stream:
            return stream.readline(_FIRST_LINE).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the file {file} in VAULT_SECRET_ID_FILE cannot be read") from error
