"""A second reader of repositories, written from docs/format alone. It shares no code with the product, only its libraries."""

import base64
import hashlib
import hmac
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def hkdf(key: bytes, purpose: str, salt: bytes = b"") -> bytes:
    """keys.md, the table of keys."""
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=b"lab-backup/1/" + purpose.encode()).derive(key)


def decode(codec: int, data: bytes, length: int) -> bytes:
    """packs.md, the table of codecs."""
    raw = {0: lambda: data, 1: lambda: zstandard.ZstdDecompressor().decompress(data), 2: lambda: zlib.decompress(data)}[
        codec
    ]()
    assert len(raw) == length
    return raw


class IndependentReader:
    """Reads a repository on a local disk."""

    def __init__(self, root: Path, passphrase: str) -> None:
        """Unlock it, check config, and read the whole index."""
        self.root = root
        stored = next(path for path in (root / "config", root / "config.copy") if path.exists())  # objects.md
        self.config: dict[str, Any] = json.loads(stored.read_bytes())
        self.id = bytes.fromhex(self.config["id"])
        self.master, self.identity = self._unlock(passphrase)
        self.metadata = hkdf(self.master, "metadata")
        text = json.dumps({**self.config, "seal": ""}, sort_keys=True).encode()
        assert hmac.new(hkdf(self.metadata, "config"), text, hashlib.sha256).hexdigest() == self.config["seal"]
        self.places: dict[bytes, tuple[bytes, int, int, int, int]] = {}
        self.pack_keys: dict[bytes, tuple[int, bytes]] = {}
        for path in sorted((root / "index").iterdir()):
            self._read_index(self._unseal(1, f"index/{path.name}"))

    def _unlock(self, passphrase: str) -> tuple[bytes, bytes]:
        for path in (self.root / "keys").iterdir():
            slot = json.loads(path.read_bytes())
            salt = base64.b64decode(slot["salt"])
            key = Argon2id(
                salt=salt, length=32, iterations=slot["iterations"], lanes=slot["lanes"], memory_cost=slot["memory_kib"]
            ).derive(passphrase.encode())
            names = ("version", "id", "kind", "memory_kib", "iterations", "lanes")
            bound = "/".join([*(str(slot[name]) for name in names), salt.hex()])
            associated = f"lab-backup/1/slot/{self.config['id']}/{bound}".encode()
            raw = AESGCM(key).decrypt(base64.b64decode(slot["nonce"]), base64.b64decode(slot["wrapped"]), associated)
            return raw[:32], raw[32:]
        raise AssertionError("no key slot")

    def _unseal(self, kind: int, name: str) -> bytes:
        data = (self.root / name).read_bytes()
        magic, version, found, codec, owner, salt, length = struct.unpack("<4sBBBx16s32sI", data[:60])
        assert (magic, version, found, owner) == (b"LBSO", 1, kind, self.id)
        body = AESGCM(hkdf(self.metadata, "object", salt)).decrypt(bytes(12), data[60:], data[:60] + name.encode())
        return decode(codec, body, length)

    def _read_index(self, payload: bytes) -> None:
        at = 0
        while at < len(payload):
            pack, kind, _, wrapped, count = struct.unpack_from("<16sBQ60sI", payload, at)
            at += 89
            head = struct.pack("<4sBBBx16s16s", b"LBPK", 1, kind, 1, self.id, pack)
            wrapping = hkdf(self.master, {1: "data", 2: "tree"}[kind])
            self.pack_keys[pack] = (kind, AESGCM(wrapping).decrypt(wrapped[:12], wrapped[12:], head))
            for _ in range(count):
                blob, offset, stored, raw, codec = struct.unpack_from("<32sIIIB", payload, at)
                self.places[blob] = (pack, offset, stored, raw, codec)
                at += 45

    def blob(self, identity: bytes) -> bytes:
        """packs.md and trees.md: one blob, its id checked."""
        pack, offset, stored, raw, codec = self.places[identity]
        kind, key = self.pack_keys[pack]
        name = pack.hex()
        with (self.root / "packs" / name[:2] / name).open("rb") as file:
            file.seek(offset)
            data = file.read(stored)
        associated = struct.pack("<4sBB16s32sBI", b"LBPK", 1, kind, self.id, identity, codec, raw)
        content = decode(codec, AESGCM(key).decrypt(offset.to_bytes(12, "big"), data, associated), raw)
        id_key = hkdf(self.identity, {1: "chunk id", 2: "node id"}[kind])
        assert blake3(content, key=id_key).digest() == identity
        return content

    def backups(self) -> list[dict[str, Any]]:
        """manifests.md: all manifests."""
        return [
            json.loads(self._unseal(2, f"manifests/{path.name}"))
            for path in sorted((self.root / "manifests").iterdir())
        ]

    def marks(self, backup: str) -> dict[str, Any]:
        """objects.md: what holds about a backup."""
        folder = self.root / "marks" / backup
        found = (
            [json.loads(self._unseal(3, f"marks/{backup}/{path.name}")) for path in sorted(folder.iterdir())]
            if folder.exists()
            else []
        )
        return {mark["kind"]: mark["value"] for mark in found}

    def content(self, entry: dict[str, Any]) -> bytes:
        """trees.md: a whole disk or file."""
        size, chunk = entry["size"], entry["chunk_size"]
        disk = bytearray(size)
        levels = 1
        while 64**levels < -(-size // chunk):
            levels += 1

        def walk(identity: bytes, level: int, first: int) -> None:
            node = self.blob(identity)
            form, found, mask = struct.unpack_from("<BBQ", node)
            assert (form, found) == (1, level)
            at = 10
            for slot in range(64):
                if not mask >> slot & 1:
                    continue
                child = node[at : at + 32]
                at += 32
                if level:
                    walk(child, level - 1, first + slot * 64**level)
                else:
                    start = (first + slot) * chunk
                    data = self.blob(child)
                    assert len(data) == min(chunk, size - start)
                    disk[start : start + len(data)] = data

        if entry["root"] is not None:
            walk(bytes.fromhex(entry["root"]), levels - 1, 0)
        return bytes(disk)
