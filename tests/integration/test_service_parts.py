"""What the parts of the service do together: retention as a job, a worker of another version, and the start of all of it for others than this machine."""

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from lab_backup.demo.podman_service import PodmanService
from lab_backup.jobs.beat import _retention
from support.cluster import Cluster
from support.podman_box import container
from support.service import PASSWORD, free_port


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Run an API, a beat and a worker."""
    with Cluster() as made:
        for kind in ("api", "beat"):
            made.start(kind)
        made.start("worker", "--concurrency", "1")
        made.wait_for_apis()
        yield made


def until(look: Any, good: Any, seconds: float = 60) -> Any:
    """Return what `look` sees when it is good."""
    end = time.monotonic() + seconds
    while not good(seen := look()):
        assert time.monotonic() < end, seen
        time.sleep(0.2)
    return seen


def test_retention_deletes_what_its_rules_do_not_keep_and_nothing_that_is_protected(
    cluster: Cluster, podman_service: PodmanService, tmp_path: Path
) -> None:
    """Four backups of a schedule that keeps the last one, the first of them protected: the daily job marks the two between as deleted, in the repository and in the list."""
    token = cluster.sign_in()
    storage = cluster.ask("POST", "storage", {"name": "disk", "url": str(tmp_path / "r"), "passphrase": None}, token=token)  # fmt: skip
    host = cluster.ask("POST", "podman/hosts", {"name": "box", "uri": podman_service.uri}, token=token)
    with container(podman_service) as box:
        rows = until(
            lambda: cluster.ask("GET", f"podman/hosts/{host['id']}/containers", token=token)["items"],
            lambda found: any(row["name"] == box.name for row in found),
        )
        source = next(row["id"] for row in rows if row["name"] == box.name)
        rules = {"last": 1, "hourly": 0, "daily": 0, "weekly": 0, "monthly": 0, "yearly": 0}
        body = {"name": "often", "source_type": "container", "source_id": source, "cron_expression": "0 3 1 1 *", "storage_backend_id": storage["id"], "retention_config": rules}  # fmt: skip
        schedule = cluster.ask("POST", "schedules", body, token=token)
        for number in range(4):
            box.sh(f"echo {number} > /data/file")
            done = cluster.job(cluster.ask("POST", f"schedules/{schedule['id']}/run", token=token)["id"], token)
            assert done["status"].startswith("succeeded"), done

    def backups() -> list[Any]:
        found: list[Any] = cluster.ask("GET", f"backups?storage={storage['id']}&order=oldest", token=token)["items"]
        return found

    first = backups()[0]
    cluster.job(cluster.ask("POST", f"backups/{first['id']}/protect", token=token)["id"], token)
    with cluster.sessions() as session:
        (prune,) = [job for job in _retention(session) if job.type == "prune"]  # as the beat does every day
        session.add(prune)
        session.commit()
    done = cluster.job(str(prune.id), token)
    assert (done["status"], done["result"]) == ("succeeded", {"kept": 2, "removed": 2})
    assert [row["status"] for row in backups()] == ["complete", "deleted", "deleted", "complete"]
    rebuilt = cluster.job(cluster.ask("POST", f"storage/{storage['id']}/rebuild-catalog", token=token)["id"], token)
    assert rebuilt["status"] == "succeeded"
    assert [row["status"] for row in backups()] == ["complete", "deleted", "deleted", "complete"]


def test_a_worker_of_another_version_is_told_of(cluster: Cluster) -> None:
    """The list of workers says which one should be updated."""
    token = cluster.sign_in()
    cluster.start("worker", "--concurrency", "1", first="import lab_backup; lab_backup.__version__ = '0.0.1'")

    def versions() -> dict[str, bool]:
        found = cluster.ask("GET", "workers", token=token)
        return {row["version"]: row["same_version"] for row in (found["items"] if isinstance(found, dict) else found)}

    seen = until(versions, lambda found: len(found) == 2)
    assert seen.pop("0.0.1") is False
    assert list(seen.values()) == [True]


def test_for_other_machines_it_speaks_tls_and_its_administrator_needs_no_console() -> None:
    """On all addresses: HTTPS alone, with a certificate of its own whose printed fingerprint fits, kept at the next start; the administrator of the environment signs in."""
    folder = Path(tempfile.mkdtemp(prefix="lb-tls-"))
    folder.chmod(0o711)
    try:
        (folder / "password").write_text(PASSWORD + "\n")
        prints = {_check_start(folder) for _ in range(2)}
        assert len(prints) == 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_start(folder: Path) -> str:
    """Start the service, check it, end it, and return the fingerprint that it printed."""
    port = free_port()
    environment = {
        **os.environ,
        "CONTAINER_HOST": f"unix://{folder}/no-podman.sock",
        "LAB_BACKUP_ADMIN_USERNAME": "root-of-all",
        "LAB_BACKUP_ADMIN_PASSWORD_FILE": str(folder / "password"),
    }
    arguments = ["up", "--data-dir", str(folder / "data"), "--host", "0.0.0.0", "--port", str(port), "--json"]  # noqa: S104  that is what is tested
    with subprocess.Popen(
        [sys.executable, "-m", "lab_backup", *arguments], stdout=subprocess.PIPE, env=environment, text=True, start_new_session=True
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            assert (told["setup"], told["url"].startswith("https://")) == (None, True)
            pem = ssl.get_server_certificate(("127.0.0.1", port), timeout=20)
            found = x509.load_pem_x509_certificate(pem.encode()).fingerprint(hashes.SHA256()).hex(":").upper()
            assert told["fingerprint"] == found
            (folder / "ca.pem").write_text(pem)
            trust = ssl.create_default_context(cafile=str(folder / "ca.pem"))
            body = {"username": "root-of-all", "password": PASSWORD}
            answer = httpx.post(f"https://localhost:{port}/api/v1/auth/login", json=body, verify=trust, timeout=30)
            assert answer.status_code == 200, answer.text
            with pytest.raises(httpx.HTTPError):
                httpx.get(f"http://127.0.0.1:{port}/api/v1/health/live", timeout=10)
            assert (folder / "data/secrets/tls.key").stat().st_mode & 0o077 == 0
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(90)
    fingerprint: str = told["fingerprint"]
    return fingerprint
