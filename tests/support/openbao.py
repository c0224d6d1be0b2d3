"""A real OpenBao in memory, with the transit key `transit/lab`, passphrases at `secret/lab` (KV 2) and `old/lab` (KV 1), and an AppRole that may use these."""

import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hvac

from lab_backup.security.vault import VaultAccess

PASSPHRASE = "correct horse of the bao"
POLICY = """
path "transit/encrypt/lab" { capabilities = ["update"] }
path "transit/decrypt/lab" { capabilities = ["update"] }
path "secret/data/lab" { capabilities = ["read"] }
path "old/lab" { capabilities = ["read"] }
"""


@dataclass(frozen=True)
class Bao:
    """The server, as its root and as the AppRole."""

    root: hvac.Client
    access: VaultAccess
    role: VaultAccess


@contextmanager
def openbao(directory: Path) -> Iterator[Bao]:
    """Run the server until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [str(Path(sys.executable).parent / "bao"), "server", "-dev", "-dev-no-store-token"]
    command += [f"-dev-listen-address=127.0.0.1:{port}", f"-dev-root-token-id={token}"]
    environment = {"HOME": str(directory), "PATH": "/usr/bin:/bin"}
    with (directory / "bao.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        root = hvac.Client(url=address, token=token, timeout=10)
        _wait(root, server)
        root.sys.enable_secrets_engine("transit")
        root.secrets.transit.create_key("lab")
        root.secrets.transit.create_key("other")
        root.secrets.kv.v2.create_or_update_secret("lab", secret={"passphrase": PASSPHRASE, "number": 7})
        root.secrets.kv.v2.create_or_update_secret("other", secret={"passphrase": "not yours"})
        root.sys.enable_secrets_engine("kv", path="old", options={"version": "1"})
        root.secrets.kv.v1.create_or_update_secret("lab", secret={"passphrase": PASSPHRASE}, mount_point="old")
        root.sys.create_or_update_policy("lab", POLICY)
        root.sys.enable_auth_method("approle")
        root.auth.approle.create_or_update_approle("host", token_policies=["lab"])
        role_id = root.auth.approle.read_role_id("host")["data"]["role_id"]
        secret_id = root.auth.approle.generate_secret_id("host")["data"]["secret_id"]
        yield Bao(root, VaultAccess(address, token=token), VaultAccess(address, role_id=role_id, secret_id=secret_id))
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(10)


def _wait(root: hvac.Client, server: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 30
    while server.poll() is None and time.monotonic() < end:
        try:
            if not root.sys.is_sealed():
                return
        except OSError:  # requests' errors are OSErrors: it does not listen yet
            time.sleep(0.05)
    raise AssertionError("OpenBao does not start")
