"""Manifests are input like any other: what cannot be is refused, field by field."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.repository.errors import DamagedError, NewerVersionError
from lab_backup.repository.manifest import (
    MAX_DISK,
    DiskEntry,
    FileEntry,
    Manifest,
    SourceInfo,
    checksum,
    decode,
    encode,
    is_id,
    path,
)

BACKUP = "00112233445566778899aabbccddeeff"
REPOSITORY = "ffeeddccbbaa99887766554433221100"
ROOT = "ab" * 32
MANIFEST = Manifest(
    version=1,
    backup=BACKUP,
    repository=REPOSITORY,
    time="2026-03-29T02:30:00.123Z",
    source=SourceInfo(kind="vm", id="4f6a", name="web", host="qemu:///system"),
    kind="incremental",
    consistency="filesystem",
    parent="0" * 32,
    disks=(
        DiskEntry(name="vda", size=1000, chunk_size=16384, root=ROOT, format="qcow2", identity="x", kind="incremental"),
        DiskEntry(name="vdb", size=0, chunk_size=16384, root=None, format="raw", identity="y", kind="full"),
    ),
    files=(FileEntry(name="domain.xml", size=10, chunk_size=16384, root=ROOT),),
    warnings=("something",),
)


def changed(change: dict[str, Any], *, disk: bool = False) -> bytes:
    """Return the manifest's JSON with fields replaced, of the whole or of its first disk."""
    fields = json.loads(encode(MANIFEST))
    (fields["disks"][0] if disk else fields).update(change)
    return json.dumps(fields).encode()


def test_round_trip() -> None:
    """What was encoded decodes to the same, and the checksum is of exactly these bytes."""
    payload = encode(MANIFEST)
    assert decode(payload, BACKUP, REPOSITORY) == MANIFEST
    assert checksum(payload) != checksum(payload + b" ")
    assert path(BACKUP) == f"manifests/{BACKUP}"
    assert MANIFEST.when.timestamp() == pytest.approx(1774751400.123)
    assert MANIFEST.disk("vdb") == MANIFEST.disks[1]
    assert MANIFEST.disk("domain.xml") is None
    assert MANIFEST.file("domain.xml") == MANIFEST.files[0]
    assert MANIFEST.file("vda") is None


def test_unknown_fields_are_passed_over() -> None:
    """A later release may add fields without a new version."""
    assert decode(changed({"later": {"deep": [1]}}), BACKUP, REPOSITORY) == MANIFEST


BAD_NAMES = [
    "", ".", "..", "../vda", "a/b", "/etc/passwd", "a\\b/c", "a\nb", "a\n", "a\0", "\0", "-rf", ".hidden", "a b", "ü", "x" * 129,
    "a\u202eb", "\ud800", "a\r", "C:", "$(id)", "*", None, 7, ["vda"],
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_could_lead_elsewhere(name: object) -> None:
    """A disk's or file's name is a plain file name."""
    with pytest.raises(DamagedError):
        decode(changed({"name": name}, disk=True), BACKUP, REPOSITORY)
    fields = json.loads(encode(MANIFEST))
    fields["files"][0]["name"] = name
    with pytest.raises(DamagedError):
        decode(json.dumps(fields).encode(), BACKUP, REPOSITORY)


@pytest.mark.parametrize(
    "change",
    [
        {"size": -1},
        {"size": MAX_DISK + 1},
        {"size": 2**64},
        {"size": 10**400},
        {"size": 1.5},
        {"size": "1000"},
        {"size": None},
        {"size": True},
        {"chunk_size": 0},
        {"chunk_size": 1},
        {"chunk_size": -16384},
        {"chunk_size": 20000},
        {"chunk_size": 1 << 40},
        {"root": "ab"},
        {"root": ROOT + "\n"},
        {"root": ROOT.upper()},
        {"root": ROOT[:-1] + "g"},
        {"root": 5},
        {"kind": "differential"},
        {"format": None},
        {"checkpoint": 3},
        {"bytes_read": -1},
        {"bytes_stored": -1},
    ],
)
def test_impossible_disk(change: dict[str, Any]) -> None:
    """Sizes, ids and kinds that cannot be are refused, however large or odd the numbers."""
    with pytest.raises(DamagedError):
        decode(changed(change, disk=True), BACKUP, REPOSITORY)


@pytest.mark.parametrize(
    "change",
    [
        {"backup": REPOSITORY},
        {"backup": BACKUP + "\n"},
        {"backup": "../" + BACKUP[3:]},
        {"repository": BACKUP},
        {"version": 0},
        {"version": -1},
        {"version": "1"},
        {"version": None},
        {"version": True},
        {"kind": "none"},
        {"parent": "x"},
        {"parent": 3},
        {"source": None},
        {"source": {"kind": "vm"}},
        {"disks": [None]},
        {"disks": {}},
        {"disks": json.loads(encode(MANIFEST))["disks"][:1] * 2},
        {"files": [{"name": "vda", "size": 0, "chunk_size": 16384, "root": None}]},
        {"statistics": {"bytes_total": -1}},
        {"statistics": {"bytes_read": "many"}},
        {"statistics": {"duration_seconds": -1}},
        {"warnings": "text"},
        {"time": "yesterday"},
        {"time": ""},
        {"time": "2026-03-29T02:30:00"},
        {"time": "0001-01-01T00:00:00+23:59"},
        {"time": "9999-12-31T23:59:59-23:59"},
        {"time": 1774744200},
        {"looked": "2026-03-29T02:30:00"},
        {"looked": "never"},
        {"looked": 5},
    ],
)
def test_impossible_manifest(change: dict[str, Any]) -> None:
    """Wrong ids, doubled names, times without an offset and wrong types are refused."""
    with pytest.raises(DamagedError):
        decode(changed(change), BACKUP, REPOSITORY)


@pytest.mark.parametrize("field", ["version", "backup", "repository", "time", "source", "kind", "consistency"])
def test_missing_field(field: str) -> None:
    """What every backup has must be there."""
    fields = json.loads(encode(MANIFEST))
    del fields[field]
    with pytest.raises(DamagedError):
        decode(json.dumps(fields).encode(), BACKUP, REPOSITORY)


@pytest.mark.parametrize("version", [3, 255, 10**30])
def test_newer_version(version: int) -> None:
    """A manifest of a later format says so, whatever else is in it."""
    with pytest.raises(NewerVersionError):
        decode(changed({"version": version}), BACKUP, REPOSITORY)
    with pytest.raises(NewerVersionError):
        decode(json.dumps({"version": version}).encode(), BACKUP, REPOSITORY)


@pytest.mark.parametrize(
    "payload", [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"version": 1' + b"0" * 5000 + b"}"]
)
def test_nonsense(payload: bytes) -> None:
    """What is no manifest at all is damage, or of a later version, never a crash."""
    with pytest.raises((DamagedError, NewerVersionError)):
        decode(payload, BACKUP, REPOSITORY)


@given(text=st.text(max_size=40))
def test_is_id(text: str) -> None:
    """Only 32 hexadecimal characters are a whole id."""
    assert not is_id(text) or (len(text) == 32 and set(text) <= set("0123456789abcdef"))
    assert is_id(BACKUP)
    assert not is_id(BACKUP + "\n")
