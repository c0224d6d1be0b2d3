"""What HashiCorp Vault or OpenBao keeps for us: a transit key that wraps ours and never leaves it, or a passphrase in its KV engine."""

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import hvac
import requests
from hvac import exceptions

from lab_backup.errors import AccessDeniedError, LabBackupError, UsageError

T = TypeVar("T")

TIMEOUT = 15.0  # seconds for one call
# What `encrypt` returns. Anything else is not sent to the server.
_CIPHERTEXT = re.compile(r"[a-z]+:v[0-9]{1,9}:[A-Za-z0-9+/=]{1,4096}")
_PATH = re.compile(r"(?P<mount>[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*)/(?P<key>[A-Za-z0-9_.-]+)")
_KV_PATH = re.compile(
    r"(?P<mount>[A-Za-z0-9_.-]+)/(?P<path>[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*)#(?P<field>[A-Za-z0-9_.-]+)"
)


class VaultError(LabBackupError):
    """Vault cannot do it: it is sealed, out of reach, or knows no such key. It says nothing about whether the key would fit."""


class VaultDeniedError(VaultError, AccessDeniedError):
    """Vault refuses: the token or AppRole is wrong or expired, or its policy does not allow it."""


@dataclass(frozen=True, slots=True)
class VaultAccess:
    """Where Vault is and who we are there: a `token`, or an AppRole. `ca` is a file with the certificates to trust."""

    address: str
    token: str | None = field(default=None, repr=False)
    role_id: str | None = None
    secret_id: str | None = field(default=None, repr=False)
    ca: str | None = None
    namespace: str | None = None


class _Vault:
    """A session, in which every failure has a name and shows no secret. `name` is what is asked of it, for messages."""

    def __init__(self, access: VaultAccess, name: str, needs: str) -> None:
        """Log in. `needs`: what the policy must allow. Raises VaultError."""
        self.name = name
        self._needs = needs
        self._address = access.address
        self.client = hvac.Client(
            url=access.address,
            token=access.token or "",
            namespace=access.namespace,
            verify=access.ca or True,
            timeout=TIMEOUT,
        )
        if access.token is None:
            self.call(
                "the login by AppRole",
                lambda: self.client.auth.approle.login(role_id=access.role_id, secret_id=access.secret_id),
            )

    def call(self, what: str, request: Callable[[], T]) -> T:
        # `from None` throughout: requests and hvac quote headers and bodies, which hold tokens and keys.
        try:
            return request()
        except exceptions.Forbidden:
            raise VaultDeniedError(
                f"{self.name} at {self._address} refuses {what}",
                hint=f"check that the token or AppRole is valid, and that its policy allows to {self._needs}",
            ) from None
        except exceptions.VaultDown:
            raise VaultError(
                f"Vault at {self._address} is sealed or in standby", hint="unseal it, then try again"
            ) from None
        except exceptions.InvalidPath:
            raise VaultError(
                f"{self.name} is not there at {self._address}", hint="check the path and the namespace"
            ) from None
        except exceptions.InvalidRequest as error:
            if what == "unwrapping" and "key not found" not in str(error):
                raise _ForeignError from None
            raise VaultError(
                f"{self.name} at {self._address} cannot do {what}",
                hint="check that it exists, and of which kind the engine is",
            ) from None
        except exceptions.VaultError as error:
            raise VaultError(f"{self.name} at {self._address} fails: {type(error).__name__}") from None
        except OSError as error:  # those of requests are OSErrors too
            raise _unreachable(self._address, error) from None


def _unreachable(address: str, error: OSError) -> VaultError:
    """Return what it means that no answer came."""
    match error:
        case requests.exceptions.SSLError():
            return VaultError(
                f"the certificate of Vault at {address} is not trusted", hint="name its authority in VAULT_CACERT"
            )
        case requests.exceptions.Timeout():
            return VaultError(f"Vault at {address} does not answer within {TIMEOUT:.0f} seconds")
        case requests.exceptions.RequestException():
            return VaultError(f"Vault at {address} cannot be reached", hint="check VAULT_ADDR and the network")
        case _:  # what requests raises for a file of certificates that is not there
            return VaultError(
                f"Vault at {address} cannot be asked: the certificates to trust cannot be read",
                hint="check VAULT_CACERT",
            )


class VaultTransit:
    """The key `path` (`mount/key`) of the transit engine."""

    def __init__(self, access: VaultAccess, path: str) -> None:
        """Log in. Raises UsageError, VaultError."""
        parts = _PATH.fullmatch(path)
        if parts is None or ".." in path:
            raise UsageError(f"{path!r} is not a transit key", hint="write MOUNT/KEY, such as transit/lab-backup")
        self._mount, self._key = parts["mount"], parts["key"]
        self.name = f"Vault {path}"
        self._vault = _Vault(access, self.name, "encrypt and decrypt with this key")

    def wrap(self, key: bytes) -> str:
        """Return `key` wrapped. Raises VaultError."""
        plain = base64.b64encode(key).decode()
        answer: Any = self._vault.call(
            "wrapping",
            lambda: self._vault.client.secrets.transit.encrypt_data(
                self._key, plaintext=plain, mount_point=self._mount
            ),
        )
        return str(answer["data"]["ciphertext"])

    def unwrap(self, wrapped: str) -> bytes | None:
        """Return the key; None where this transit key did not wrap it. Raises VaultError."""
        if not _CIPHERTEXT.fullmatch(wrapped):
            return None
        try:
            answer: Any = self._vault.call(
                "unwrapping",
                lambda: self._vault.client.secrets.transit.decrypt_data(
                    self._key, ciphertext=wrapped, mount_point=self._mount
                ),
            )
            return base64.b64decode(answer["data"]["plaintext"], validate=True)
        except (_ForeignError, binascii.Error):
            return None


def read_passphrase(access: VaultAccess, where: str) -> str:
    """Return the text in `where` (`mount/path#field`) of the KV engine, of either version. Raises UsageError, VaultError."""
    parts = _KV_PATH.fullmatch(where)
    if parts is None or ".." in where:
        raise UsageError(
            f"{where!r} is not a place in Vault's KV engine",
            hint="write MOUNT/PATH#FIELD, such as secret/lab#passphrase",
        )
    vault = _Vault(access, f"Vault {where}", "read this path")
    kv, mount, path = vault.client.secrets.kv, parts["mount"], parts["path"]
    try:
        answer: Any = vault.call(
            "reading", lambda: kv.v2.read_secret_version(path, mount_point=mount, raise_on_deleted_version=True)
        )
        fields = answer["data"]["data"]
    except VaultError:
        # An engine of version 1 knows no such path, and a policy for it allows none.
        answer = vault.call("reading", lambda: kv.v1.read_secret(path, mount_point=mount))
        fields = answer["data"]
    found = fields.get(parts["field"]) if isinstance(fields, dict) else None
    if not isinstance(found, str) or not found:
        raise VaultError(f"there is no text in {where} of Vault at {access.address}", hint="check the field's name")
    return found


class _ForeignError(Exception):
    """The server knows the key, and did not make the ciphertext with it."""
