"""Whole backups in a bucket of a real server: by the command line, through restarts of the server, and with what can be wrong about a bucket."""

import json
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import FlexibleChecksumError

from lab_backup.storage.base import (
    ObjectExistsError,
    ObjectLockedError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageError,
    StorageNotFoundError,
    TransientStorageError,
)
from lab_backup.storage.retry import RetryingStorage
from lab_backup.storage.s3.settings import Connection, Credentials, Encryption
from lab_backup.storage.s3.storage import MULTIPART, S3Storage
from lab_backup.units import MiB
from support.engine import back_up, new_repository, restored
from support.seaweed import ADMIN, READER, Seaweed
from support.waiting import wait_until


def raw_client(server: Seaweed) -> Any:
    """Return a client that does as another tool would."""
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=ADMIN.access_key,
        aws_secret_access_key=ADMIN.secret_key,
        region_name="us-east-1",
    )


def store(server: Seaweed, *, locks: bool = False, connection: Connection | None = None, **options: Any) -> S3Storage:
    """Return an empty store of its own on the server."""
    bucket, prefix = server.place(locks=locks)
    return S3Storage(bucket, prefix, connection=connection or server.connection(), **options)


def program(*arguments: str | Path, environment: Mapping[str, str]) -> Any:
    """Run the program with `--json` and return what it printed."""
    command = [str(Path(sys.executable).with_name("lab-backup")), *map(str, arguments), "--json"]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=300, check=False)
    assert ADMIN.secret_key not in done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout)


def test_by_the_command_line(seaweed: Seaweed, tmp_path: Path) -> None:
    """Init, back up, list, verify and restore in a bucket, with the keys in the usual variables; without them, a clear error."""
    bucket, prefix = seaweed.place()
    url = f"s3://{bucket}/{prefix}?endpoint={seaweed.endpoint}"
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "LAB_BACKUP_REPO": url,
        "LAB_BACKUP_PASSPHRASE": "correct horse battery", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    keys = {"AWS_ACCESS_KEY_ID": ADMIN.access_key, "AWS_SECRET_ACCESS_KEY": ADMIN.secret_key}
    code, answer = program("repo", "init", url, environment=environment)
    assert (code, answer["error"]["kind"]) == (1, "access_denied")
    assert program("repo", "init", url, environment=environment | keys)[0] == 0
    image = tmp_path / "disk.raw"
    image.write_bytes(secrets.token_bytes(3 * MiB) + bytes(5 * MiB))
    code, backup = program("backup", "image", image, environment=environment | keys)
    assert (code, backup["bytes_total"]) == (0, 8 * MiB)
    assert len(program("list", environment=environment | keys)[1]["backups"]) == 1
    assert program("verify", "--read-data", environment=environment | keys)[1]["corrupt"] == 0
    target = tmp_path / "again.raw"
    assert program("restore", "image", backup["backup"], "--to", target, environment=environment | keys)[0] == 0
    assert target.read_bytes() == image.read_bytes()


def test_large_objects_in_parts(seaweed: Seaweed) -> None:
    """What is larger than a part arrives whole, in one object; an upload that was interrupted is found and aborted."""
    with closing(store(seaweed)) as s3:
        data = secrets.token_bytes(MULTIPART + 5 * MiB + 17)
        s3.upload("large", data)
        assert s3.stat("large").size == len(data)
        assert s3.read("large") == data
        assert s3.read("large", MULTIPART - 3, 100) == data[MULTIPART - 3 :][:100]
        client = raw_client(seaweed)
        client.create_multipart_upload(Bucket=s3._bucket, Key=f"{s3._prefix}packs/left")
        assert s3.clean_temporary(3600) == 0
        assert s3.clean_temporary(-60) == 1
        assert s3.clean_temporary(-60) == 0


def test_server_restarts_in_the_middle(seaweed: Seaweed, tmp_path: Path) -> None:
    """A server that is killed and comes back during a backup costs time, not the backup."""
    content = secrets.token_bytes(12 * MiB)
    s3 = RetryingStorage(store(seaweed), attempts=12, base_delay=0.2, max_delay=2)
    with new_repository(s3, tmp_path) as repository:
        back_up(repository, content[: 2 * MiB])
        seaweed.kill()
        starter = threading.Timer(1.5, seaweed.start)
        starter.start()
        try:
            backup = back_up(repository, content)
        finally:
            starter.join()
        assert restored(repository, backup.backup) == content


def test_what_can_be_wrong(seaweed: Seaweed) -> None:
    """No such bucket, wrong keys, a key that may only read, nobody there: each is the error that says what to do, and tells no secret."""
    right = seaweed.connection()
    wrong = Credentials(ADMIN.access_key, "wrong" + ADMIN.secret_key)
    unknown = Credentials("NOBODYSKEY", ADMIN.secret_key)
    bucket, prefix = seaweed.place()
    cases: list[tuple[str, Connection, type[StorageError]]] = [
        ("no-such-bucket", right, StorageNotFoundError),
        (bucket, replace(right, credentials=wrong), StorageAccessError),
        (bucket, replace(right, credentials=unknown), StorageAccessError),
        (bucket, seaweed.connection(READER), StorageAccessError),
        (bucket, replace(right, endpoint="http://127.0.0.1:9"), TransientStorageError),
        (bucket, replace(right, source_address="192.0.2.1"), TransientStorageError),
    ]
    for name, connection, expected in cases:
        with closing(S3Storage(name, prefix, connection=connection)) as s3:
            with pytest.raises(expected) as caught:
                s3.upload("a", b"x")
            assert type(caught.value) is expected
            assert ADMIN.secret_key not in f"{caught.value} {caught.value.hint} {connection!r}"
            assert caught.value.__suppress_context__


def test_bound_to_an_address(seaweed: Seaweed) -> None:
    """Connections come from the address that was asked for."""
    connection = replace(seaweed.connection(), source_address="127.0.0.9")
    with closing(store(seaweed, connection=connection)) as s3:
        s3.upload("a", b"x")
        pools = s3._client._endpoint.http_session._manager.pools
        pool = pools[next(iter(pools.keys()))]
        held = pool._get_conn()
        assert held.sock.getsockname()[0] == "127.0.0.9"
        pool._put_conn(held)


@pytest.mark.parametrize("encryption", [Encryption(algorithm="AES256"), Encryption(customer_key=bytes(range(32)))])
def test_encrypted_by_the_server(seaweed: Seaweed, encryption: Encryption) -> None:
    """Small and large objects come back; with a key of ours, nobody without it can read them."""
    with closing(store(seaweed, encryption=encryption)) as s3:
        data = secrets.token_bytes(MULTIPART + MiB)
        for path, content in (("small", b"content"), ("large", data)):
            s3.upload(path, content)
            assert s3.read(path) == content
            assert s3.read(path, 2, 4) == content[2:6]
        if encryption.customer_key is not None:
            with (
                closing(S3Storage(s3._bucket, s3._prefix, connection=seaweed.connection())) as other,
                pytest.raises(StorageError),
            ):
                other.read("small")


def test_checksums_for_older_servers(seaweed: Seaweed) -> None:
    """With Content-MD5 in place of a CRC, small and large uploads arrive."""
    with closing(store(seaweed, connection=replace(seaweed.connection(), checksums="md5"))) as s3:
        data = secrets.token_bytes(MULTIPART + 1)
        s3.upload("large", data)
        s3.create("small", b"x")
        assert s3.read("large") == data


def test_hidden_behind_a_delete_marker(seaweed: Seaweed) -> None:
    """Somebody deletes a locked object the simple way: a marker hides it, but it is still read; without a lock it is gone."""
    with closing(store(seaweed, locks=True)) as s3:
        s3.upload("locked", b"still here")
        s3.upload("free", b"gone")
        until = datetime.now(UTC) + timedelta(minutes=5)
        s3.lock("locked", until)
        client = raw_client(seaweed)
        for path in ("locked", "free"):
            client.delete_object(Bucket=s3._bucket, Key=s3._prefix + path)
        assert s3.read("locked") == b"still here"
        assert s3.read("locked", 6, 4) == b"here"
        assert s3.stat("locked").size == 10
        with pytest.raises(ObjectNotFoundError):
            s3.read("free")
        with pytest.raises(ObjectLockedError):
            s3.delete("locked")


def test_hidden_behind_another_version(seaweed: Seaweed) -> None:
    """Somebody puts something else over locked objects, and locks that too, or a marker on top: the first one counts for all that ask."""
    with closing(store(seaweed, locks=True)) as s3:
        until = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=5)
        for path in ("packs/one", "packs/two", "packs/three"):
            s3.upload(path, f"ours in {path}".encode())
            s3.lock(path, until)
        s3.upload("packs/free", b"old")
        client = raw_client(seaweed)
        keys = {
            path: {"Bucket": s3._bucket, "Key": s3._prefix + path}
            for path in ("packs/one", "packs/two", "packs/three", "packs/free")
        }
        client.put_object(**keys["packs/one"], Body=b"theirs")
        client.put_object(
            **keys["packs/two"],
            Body=b"theirs, locked",
            ObjectLockMode="GOVERNANCE",
            ObjectLockRetainUntilDate=until + timedelta(hours=1),
        )
        client.put_object(**keys["packs/three"], Body=b"theirs")
        client.delete_object(**keys["packs/three"])
        client.put_object(**keys["packs/free"], Body=b"newer")
        for fresh in (s3, S3Storage(s3._bucket, s3._prefix.rstrip("/"), connection=seaweed.connection())):
            for path in ("packs/one", "packs/two", "packs/three"):
                ours = f"ours in {path}".encode()
                assert fresh.read(path) == ours
                assert fresh.read(path, 5, 3) == ours[5:8]
                assert fresh.stat(path).size == len(ours)
                assert fresh.locked_until(path) == until
                with pytest.raises(ObjectLockedError):
                    fresh.delete(path)
                with pytest.raises(ObjectExistsError):
                    fresh.create(path, b"again")
            assert fresh.read("packs/free") == b"newer"
            assert {info.path: info.size for info in fresh.list("packs")} == {
                "packs/one": 17, "packs/two": 17, "packs/three": 19, "packs/free": 5,
            }  # fmt: skip
        longer = until + timedelta(minutes=5)
        s3.lock("packs/three", longer)
        assert s3.locked_until("packs/three") == longer
        assert s3.read("packs/three") == b"ours in packs/three"


def test_the_servers_clock_ends_locks(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock runs days ahead sees locked objects behind delete markers as any other does, and says until when they are locked."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=3)

    with closing(store(seaweed, locks=True)) as s3:
        s3.upload("manifests/a", b"ours")
        until = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=5)
        s3.lock("manifests/a", until)
        raw_client(seaweed).delete_object(Bucket=s3._bucket, Key=s3._prefix + "manifests/a")
        monkeypatch.setattr("lab_backup.storage.s3.versions.datetime", Ahead)
        fresh = S3Storage(s3._bucket, s3._prefix.rstrip("/"), connection=seaweed.connection())
        with closing(fresh):
            assert [info.path for info in fresh.list("manifests")] == ["manifests/a"]
            assert fresh.read("manifests/a") == b"ours"
            assert fresh.locked_until("manifests/a") == until
            with pytest.raises(ObjectLockedError):
                fresh.delete("manifests/a")


def test_many_versions_over_a_locked_one(seaweed: Seaweed) -> None:
    """However much is put over it, the locked one is found, and what is remembered of it is little."""
    with closing(store(seaweed, locks=True)) as s3:
        s3.upload("packs/a", b"ours")
        s3.lock("packs/a", datetime.now(UTC) + timedelta(minutes=5))
        client = raw_client(seaweed)
        for number in range(30):
            client.put_object(Bucket=s3._bucket, Key=s3._prefix + "packs/a", Body=bytes(number))
        with closing(S3Storage(s3._bucket, s3._prefix.rstrip("/"), connection=seaweed.connection())) as fresh:
            assert fresh.read("packs/a") == b"ours"
            assert [info.size for info in fresh.list("packs")] == [4]


def test_a_lock_that_is_over_pins_nothing(seaweed: Seaweed) -> None:
    """What was read while it was locked, and was removed by another host afterwards, is not said to be there still."""
    with closing(store(seaweed, locks=True)) as s3:
        s3.upload("packs/a", b"short")
        until = datetime.now(UTC) + timedelta(seconds=5)
        s3.lock("packs/a", until)
        assert s3.read("packs/a") == b"short"
        other = S3Storage(s3._bucket, s3._prefix.rstrip("/"), connection=seaweed.connection())
        with closing(other):
            wait_until(lambda: removed(other, "packs/a"), 30)
            with pytest.raises(ObjectNotFoundError):
                s3.stat("packs/a")
            other.upload("packs/a", b"another")
        assert s3.read("packs/a") == b"another"
        assert s3.stat("packs/a").size == 7


def removed(s3: S3Storage, path: str) -> bool:
    """Delete the object if its lock is over."""
    try:
        s3.delete(path)
    except ObjectLockedError:
        return False
    return True


def test_deletion_frees_space_where_versions_are_kept(seaweed: Seaweed) -> None:
    """In a bucket with versions nothing stays of an object that was deleted."""
    with closing(store(seaweed, locks=True)) as s3:
        for content in (b"one", b"two"):
            s3.upload("a", content)
        s3.delete("a")
        answer = raw_client(seaweed).list_object_versions(Bucket=s3._bucket, Prefix=s3._prefix + "a")
        assert not answer.get("Versions")
        assert not answer.get("DeleteMarkers")


def test_other_tools_in_the_same_prefix(seaweed: Seaweed) -> None:
    """Names that no storage of ours has are neither listed nor touched."""
    with closing(store(seaweed)) as s3:
        client = raw_client(seaweed)
        for key in (".hidden", "with space", "notes/.keep"):
            client.put_object(Bucket=s3._bucket, Key=s3._prefix + key, Body=b"theirs")
        s3.upload("ours", b"x")
        assert [info.path for info in s3.list()] == ["ours"]
        assert s3.clean_temporary(-60) == 0
        assert client.get_object(Bucket=s3._bucket, Key=s3._prefix + "with space")["Body"].read() == b"theirs"


def test_a_wrong_checksum_is_noticed(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that do not fit the checksum that the server sent with them are a passing failure, and nobody sees them."""
    with closing(store(seaweed)) as s3:
        s3.upload("a", b"content")
        assert s3.read("a") == b"content"
        monkeypatch.setattr("botocore.httpchecksum.StreamingChecksumBody._validate_checksum", _refuse)
        with pytest.raises(TransientStorageError):
            s3.read("a")


def _refuse(*_: object) -> None:
    raise FlexibleChecksumError(error_msg="flipped on the way")


@pytest.mark.parametrize("locks", [False, True])
def test_probes_leave_nothing(seaweed: Seaweed, *, locks: bool) -> None:
    """What is put to find out about the server is gone with all its versions; so is, later, what a killed process left."""
    with closing(store(seaweed, locks=locks)) as s3:
        assert s3.atomic_create
        client = raw_client(seaweed)

        def left() -> list[Any]:
            answer = client.list_object_versions(Bucket=s3._bucket, Prefix=s3._prefix)
            return [*answer.get("Versions", ()), *answer.get("DeleteMarkers", ())]

        assert left() == []
        client.put_object(Bucket=s3._bucket, Key=f"{s3._prefix}.probe-0", Body=b"left")
        assert s3.clean_temporary(3600) == 0
        assert s3.clean_temporary(-60) == 1
        assert left() == []


def test_a_missing_bucket(seaweed: Seaweed) -> None:
    """Every call says that the bucket is missing, none that data is, and a listing is not empty."""
    with closing(S3Storage("no-such-bucket", "place", connection=seaweed.connection())) as s3:
        calls: list[Callable[[], object]] = [
            lambda: s3.stat("a"), lambda: s3.read("a"), lambda: s3.read("a", 3, 4), lambda: list(s3.list()),
            lambda: s3.delete("a"), lambda: s3.locked_until("a"), lambda: s3.locks, lambda: s3.create("a", b""),
            lambda: s3.clean_temporary(0), s3.get_usage,
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(StorageNotFoundError):
                call()
