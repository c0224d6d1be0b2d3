"""Objects in an S3 bucket. Contract: `StorageBackend`.

What differs between servers is asked for once and then known: whether create-if-absent is one step (RFC 9110 If-None-Match, which older servers
ignore), whether the bucket keeps versions, whether it can lock them.
"""

import base64
import hashlib
import secrets
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import islice
from typing import Any

from botocore import exceptions as boto

from lab_backup.blocks import Buffer
from lab_backup.storage.base import (
    InvalidPathError,
    ObjectExistsError,
    ObjectInfo,
    ObjectLockedError,
    ObjectNotFoundError,
    StorageBackend,
    StorageError,
    TransientStorageError,
    Usage,
    check_path,
)
from lab_backup.storage.s3.client import make_client
from lab_backup.storage.s3.errors import is_status, is_unknown, status_of, translated
from lab_backup.storage.s3.settings import Connection, Encryption, LockMode
from lab_backup.storage.s3.versions import Versions
from lab_backup.units import KiB, MiB

MULTIPART = 40 * MiB  # what is larger goes in parts, several at once; a pack goes whole, by one request in place of six
PART = 8 * MiB  # S3 accepts 5 MiB to 5 GiB; small parts keep more requests in flight
_SMALL = 4 * KiB, 64 * KiB  # asked for from the beginning of an object, that is hardly the beginning of a large one
_PAGE = 1000  # names, in an answer that lists them


def _info(row: Mapping[str, Any], prefix: str) -> ObjectInfo:
    return ObjectInfo(row["Key"].removeprefix(prefix), row["Size"], row["LastModified"].astimezone(UTC))


class S3Storage(StorageBackend):
    """The objects of `bucket` whose names begin with `prefix`. Nothing else in the bucket is listed or touched."""

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        connection: Connection | None = None,
        encryption: Encryption | None = None,
        storage_class: str | None = None,
        lock_mode: LockMode = "GOVERNANCE",
        concurrency: int = 8,
    ) -> None:
        """Use the bucket; the server is not asked yet. `concurrency` is how many requests are in flight at once."""
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._connection = connection or Connection()
        self._lock_mode = lock_mode
        self._concurrency = concurrency
        # Parts of several uploads, and the requests around them, are in flight together.
        self._client = make_client(self._connection, connections=3 * concurrency)
        self._versions = Versions(self._client, bucket)
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="s3-part")
        self._put_options: dict[str, Any] = {}
        self._key_options: dict[str, Any] = {}
        if storage_class is not None:
            self._put_options["StorageClass"] = storage_class
        if encryption is not None:
            self._encrypt(encryption)
        self._probing = threading.Lock()

    def _encrypt(self, encryption: Encryption) -> None:
        if encryption.customer_key is not None:
            self._key_options = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": encryption.customer_key}
        elif encryption.algorithm is not None:
            self._put_options["ServerSideEncryption"] = encryption.algorithm
            if encryption.kms_key is not None:
                self._put_options["SSEKMSKeyId"] = encryption.kms_key

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`, with the endpoint where it is not Amazon's."""
        endpoint = f"?endpoint={self._connection.endpoint}" if self._connection.endpoint else ""
        return f"s3://{self._bucket}/{self._prefix.rstrip('/')}{endpoint}"

    @property
    def concurrency(self) -> int:
        """As it was set."""
        return self._concurrency

    def _where(self, path: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + check_path(path)}

    # --- writing ---

    def upload(self, path: str, data: Buffer, metadata: Mapping[str, str] | None = None) -> None:
        """Store `data`, in parallel parts where it is large; an upload that fails is taken back."""
        where = self._where(path)
        body = memoryview(data).cast("B")
        options = {**self._put_options, **self._key_options, **({"Metadata": dict(metadata)} if metadata else {})}
        with translated(self.url, path):
            if len(body) > MULTIPART:
                self._put_parts(where, body, options)
            elif self.locks and self.atomic_create and self._put_new(where, body, options):
                return  # as nearly all objects are: no look at versions is needed
            else:
                self._put(where, body, options)
            if self.locks:
                self._replace(where)

    def _put_new(self, where: dict[str, str], body: memoryview, options: dict[str, Any]) -> bool:
        try:
            self._put(where, body, {**options, "IfNoneMatch": "*"})
        except boto.ClientError as error:
            if not is_status(error, 412):
                raise
            return False
        return True

    def _replace(self, where: dict[str, str]) -> None:
        """Make what was just put count also where a version before it was locked once: remove those, unless one is locked still."""
        key, ours = where["Key"], self._versions.written(where["Key"])
        before = [row for row in self._versions.of(key) if row["VersionId"] != ours]
        ends = [end for row in before if (end := self._versions.retention(key, row["VersionId"])) is not None]
        if ends and max(ends) <= self._versions.now():
            for row in before:
                self._client.delete_object(**where, VersionId=row["VersionId"])

    def create(self, path: str, data: Buffer) -> None:
        """Store `data` if there is nothing: in one step where the server can do that, else by a look before."""
        where = self._where(path)
        atomic = self.atomic_create
        # A delete marker over a locked object makes its name look free.
        if (not atomic or self.locks) and self._exists(path):
            raise ObjectExistsError(f"{path} exists already in {self.url}")
        with translated(self.url, path):
            condition = {"IfNoneMatch": "*"} if atomic else {}
            self._put(where, memoryview(data).cast("B"), {**self._put_options, **self._key_options, **condition})

    def _put(self, where: dict[str, str], body: memoryview, options: dict[str, Any]) -> None:
        answer = self._client.put_object(**where, **options, **self._digest(body), Body=bytes(body))
        self._versions.wrote(where["Key"], answer)

    def _digest(self, body: memoryview) -> dict[str, str]:
        """Return what lets an older server notice bytes that flipped on the way; newer ones get a CRC from boto3."""
        if self._connection.checksums != "md5":
            return {}
        return {"ContentMD5": base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()}

    def _put_parts(self, where: dict[str, str], body: memoryview, options: dict[str, Any]) -> None:
        upload = {**where, "UploadId": self._client.create_multipart_upload(**where, **options)["UploadId"]}

        def put(number: int) -> dict[str, Any]:
            part = body[(number - 1) * PART : number * PART]
            answer = self._client.upload_part(
                **upload, **self._key_options, **self._digest(part), PartNumber=number, Body=bytes(part)
            )
            sums = {name: answer[name] for name in ("ChecksumCRC32", "ChecksumCRC64NVME") if name in answer}
            return {"PartNumber": number, "ETag": answer["ETag"], **sums}

        try:
            parts = list(self._pool.map(put, range(1, -(-len(body) // PART) + 1)))
            answer = self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
            self._versions.wrote(where["Key"], answer)
        except BaseException:
            # What cannot be taken back now is taken back by `clean_temporary`.
            with suppress(boto.ClientError, boto.BotoCoreError):
                self._client.abort_multipart_upload(**upload)
            raise

    @cached_property
    def atomic_create(self) -> bool:
        """Whether the server honours If-None-Match; it is asked once, with an object that goes at once."""
        where = {"Bucket": self._bucket, "Key": f"{self._prefix}.probe-{secrets.token_hex(8)}"}
        with self._probing, translated(self.url, ""):
            self._client.put_object(**where, Body=b"1", **self._put_options, **self._key_options)
            try:
                self._client.put_object(**where, Body=b"2", IfNoneMatch="*", **self._put_options, **self._key_options)
            except boto.ClientError as error:
                if not is_status(error, 412, 501):
                    raise
                return status_of(error) == 412
            finally:
                # What cannot be removed now is removed by `clean_temporary`.
                with suppress(StorageError):
                    self._remove_probes(where["Key"], datetime.now(UTC) + timedelta(days=1))
        return False

    def _remove_probes(self, start: str, before: datetime) -> int:
        """Remove what was put before that time under names with that beginning, with all versions, since it is nothing to keep."""
        with translated(self.url, ""):
            rows = list(self._versions.below(start) if self._versioned else self._all_objects(start))
            old = [row for row in rows if row["LastModified"].astimezone(UTC) < before]
            for row in old:
                version = {"VersionId": row["VersionId"]} if "VersionId" in row else {}
                self._client.delete_object(Bucket=self._bucket, Key=row["Key"], **version)
        return len({row["Key"] for row in old})

    # --- reading ---

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of the object, by one request."""
        if offset < 0 or (length is not None and length < 0):
            raise ValueError("offset and length must not be negative")
        where = self._where(path)
        if length == 0:
            self.stat(path)
            return b""
        # The server's checksum is of whole objects: what is small, such as `config`, is read whole to have it.
        whole = offset == 0 and (length is None or _SMALL[0] <= length <= _SMALL[1] or length >= MULTIPART)
        span = {} if whole else {"Range": f"bytes={offset}-{'' if length is None else offset + length - 1}"}
        with translated(self.url, path):
            try:
                return self._get({**where, **self._version(path)}, span, length if whole else None)
            except boto.ClientError as error:
                if is_status(error, 416):
                    return b""
                self._look_at_bucket(error)
                raise

    def _get(self, where: dict[str, str], span: dict[str, str], limit: int | None) -> bytes:
        """Return the part `span` of an object, or the first `limit` bytes of all of it."""
        answer = self._client.get_object(**where, **span, **self._key_options)
        # Not as a context manager: that would hand out the raw stream, past the check of its checksum.
        body = answer["Body"]
        try:
            if limit is not None and answer["ContentLength"] > limit:
                return bytes(body.read(limit))
            data: bytes = body.read()
        finally:
            body.close()
        if span and "ContentRange" not in answer:
            raise StorageError(f"{self.url}: the server ignores ranges", hint="use a server that knows HTTP ranges")
        if len(data) != answer["ContentLength"]:
            raise TransientStorageError(f"{where['Key']} on {self.url} was cut off on its way")
        return data

    def stat(self, path: str) -> ObjectInfo:
        """Return size and time of the object."""
        where = self._where(path)
        with translated(self.url, path):
            try:
                answer = self._client.head_object(**where, **self._version(path), **self._key_options)
            except boto.ClientError as error:
                self._look_at_bucket(error)
                raise
            return ObjectInfo(path, answer["ContentLength"], answer["LastModified"].astimezone(UTC))

    def _version(self, path: str) -> dict[str, str]:
        """Return which version of an object is to be read, where that is not simply the newest. Raises ObjectNotFoundError."""
        if not self.locks:
            return {}
        row = self._versions.true(self._prefix + path)
        if row is None:
            raise ObjectNotFoundError(f"there is no {path} in {self.url}")
        return {"VersionId": row["VersionId"]}

    def _look_at_bucket(self, error: boto.ClientError) -> None:
        """Where the answer says that there is no such object, make sure that the bucket is there. Raises what is wrong about the bucket.

        An answer to HEAD has no body that could tell the two apart, and some servers do not tell them apart in GET.
        """
        if is_status(error, 404):
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)

    def _exists(self, path: str) -> bool:
        try:
            self.stat(path)
        except ObjectNotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Return the objects below `prefix`, a thousand by each request. Other tools' names are passed over."""
        check_path(prefix, prefix=True)
        start = f"{self._prefix}{prefix}/" if prefix else self._prefix
        rows = self._versions.listed(start) if self.locks else self._all_objects(start)
        while True:
            with translated(self.url, ""):
                infos = [_info(row, self._prefix) for row in islice(rows, _PAGE)]
            if not infos:
                return
            for info in infos:
                with suppress(InvalidPathError):
                    check_path(info.path)
                    yield info

    def _all_objects(self, start: str) -> Iterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            page = self._client.list_objects_v2(Bucket=self._bucket, Prefix=start, **token)
            yield from page.get("Contents", ())
            if not page["IsTruncated"]:
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    # --- deleting, and what keeps from it ---

    def delete(self, path: str) -> None:
        """Remove the object; in a bucket that keeps versions, all its versions, since a delete marker would free nothing."""
        where = self._where(path)
        with translated(self.url, path):
            if not self._versioned:
                self._client.delete_object(**where)
                return
            # The oldest first: whoever is killed in between leaves the newest, and no older content comes back.
            for version in self._versions.of(where["Key"]):
                try:
                    self._client.delete_object(**where, VersionId=version["VersionId"])
                except boto.ClientError as error:
                    locked = is_status(error, 403, 400)
                    until = self._versions.retention(where["Key"], version["VersionId"]) if locked else None
                    if until is None:
                        raise
                    if until <= self._versions.now():  # it ended while we asked
                        self._client.delete_object(**where, VersionId=version["VersionId"])
                        continue
                    raise ObjectLockedError(
                        f"{path} in {self.url} is locked until {until:%Y-%m-%d %H:%M} UTC", until=until
                    ) from None
            self._versions.forget(where["Key"])

    @cached_property
    def _versioned(self) -> bool:
        with translated(self.url, ""):
            try:
                return str(self._client.get_bucket_versioning(Bucket=self._bucket).get("Status", "")) != ""
            except boto.ClientError as error:
                if is_unknown(error):  # a server without versions
                    return False
                raise

    @cached_property
    def locks(self) -> bool:
        """Whether the bucket was made with Object Lock."""
        with translated(self.url, ""):
            try:
                answer = self._client.get_object_lock_configuration(Bucket=self._bucket)
            except boto.ClientError as error:
                if is_unknown(error):
                    return False
                raise
            return bool(answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled")

    def lock(self, path: str, until: datetime) -> None:
        """Prolong the object's retention, unless it lasts that long already. What this process wrote is locked, not what others put over it since."""
        if not self.locks:
            super().lock(path, until)
        where = self._where(path)
        ours = self._versions.written(where["Key"])
        version = {"VersionId": ours} if ours is not None else self._version(path)
        retention = {"Mode": self._lock_mode, "RetainUntilDate": until.astimezone(UTC)}
        with translated(self.url, path):
            known = self._versions.retained(where["Key"], version["VersionId"])
            if known is None or known < until:
                self._client.put_object_retention(**where, **version, Retention=retention)

    def locked_until(self, path: str) -> datetime | None:
        """Return the end of the object's retention, if it lies ahead."""
        if not self.locks:
            self.stat(path)
            return None
        with translated(self.url, path):
            return self._versions.retained(self._prefix + path, self._version(path)["VersionId"])

    # --- the store as a whole ---

    def get_usage(self) -> Usage:
        """Return the bytes of our objects; a bucket tells no limit."""
        return Usage(None, sum(info.size for info in self.list()), None)

    def clean_temporary(self, older_than_seconds: float) -> int:
        """Abort unfinished uploads that began longer ago than that, and remove probes of processes that were killed."""
        before = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
        count = 0
        position: dict[str, str] = {}
        with translated(self.url, ""):
            while True:
                page = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=self._prefix, **position)
                for upload in page.get("Uploads", ()):
                    if upload["Initiated"].astimezone(UTC) < before:
                        self._client.abort_multipart_upload(
                            Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
                        count += 1
                if not page["IsTruncated"]:
                    break
                position = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
        return count + self._remove_probes(f"{self._prefix}.probe-", before)

    def close(self) -> None:
        """Close all connections."""
        self._pool.shutdown(wait=True)
        self._client.close()
