"""A real S3 server: SeaweedFS on ports of its own, with its data in a folder of the test's."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

import boto3

from lab_backup.storage.s3.settings import Connection, Credentials

START_SECONDS = 60
ADMIN = Credentials("ADMINACCESSKEY", secrets.token_hex(20))
READER = Credentials("READERACCESSKEY", secrets.token_hex(20))
IDENTITIES = {
    "identities": [
        {
            "name": name,
            "credentials": [{"accessKey": known.access_key, "secretKey": known.secret_key}],
            "actions": actions,
        }
        for name, known, actions in (
            ("admin", ADMIN, ["Admin", "Read", "List", "Tagging", "Write"]),
            ("reader", READER, ["Read", "List"]),
        )
    ]
}


def free_port() -> int:
    """Return a port that nobody uses at this moment, low enough for SeaweedFS to add 10,000 to it."""
    while True:
        port = 10_000 + secrets.randbelow(40_000)
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


class Seaweed:
    """The server; a context manager. It may be killed and started again with the same data and ports."""

    def __init__(self, folder: Path) -> None:
        """Keep everything in the new folder `folder`."""
        folder.mkdir()
        self.folder = folder
        self._ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"
        (folder / "identities.json").write_text(json.dumps(IDENTITIES))
        self._buckets: dict[bool, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start it and wait until it answers."""
        weed = Path(sys.executable).with_name("weed")
        ports = self._ports
        command = [
            weed, "-logtostderr=true", "-v=0", "server", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            f"-master.port={ports['master']}", f"-volume.port={ports['volume']}", f"-filer.port={ports['filer']}",
            "-s3", f"-s3.port={ports['s3']}", "-s3.port.iceberg=0", "-s3.port.lance=0",
            f"-s3.config={self.folder / 'identities.json'}", "-s3.autoCreateBucket=false",
            "-s3.allowDeleteBucketNotEmpty=false", "-s3.iam=false", "-master.telemetry=false", "-master.peers=none",
            "-master.electionTimeout=1s", "-master.volumeSizeLimitMB=256", "-volume.max=0", "-volume.preStopSeconds=0",
        ]  # fmt: skip
        environment = {**os.environ, "WEED_S3_SSE_KEY": "a-key-for-tests", "WEED_S3_SSE_KEK_PASSPHRASE": "for-tests"}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError((self.folder / "log").read_text()[-3000:])
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=2) as answer:  # noqa: S310  our own server
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """End it the hard way, which loses nothing that it has confirmed."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=30)
            self._process = None

    def connection(self, credentials: Credentials = ADMIN) -> Connection:
        """Return how to reach it."""
        return Connection(endpoint=self.endpoint, region="us-east-1", credentials=credentials)

    def place(self, *, locks: bool = False) -> tuple[str, str]:
        """Return a bucket, made when it is first asked for, and a prefix in it that nobody has used yet.

        Each bucket takes a few volumes of the server, of which there are not many.
        """
        if locks not in self._buckets:
            self._buckets[locks] = self._make_bucket(locks=locks)
        return self._buckets[locks], f"test/{secrets.token_hex(6)}"

    def _make_bucket(self, *, locks: bool) -> str:
        name = f"test-{secrets.token_hex(6)}"
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ADMIN.access_key,
            aws_secret_access_key=ADMIN.secret_key,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=locks)
        client.close()
        return name
