"""Pods of a real Podman service: all containers in one backup of one moment, and all of it back, or nothing."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab_backup.demo.podman_service import IMAGE, PodmanService
from lab_backup.errors import NotFoundError, TargetExistsError, UsageError
from lab_backup.operations import restore_container as restoring
from lab_backup.operations.backup_container import ContainerOptions
from lab_backup.operations.backup_pod import backup_pod
from lab_backup.operations.files import choose_tree, list_files
from lab_backup.operations.restore_pod import restore_pod
from lab_backup.operations.restore_volume import restore_volume
from lab_backup.operations.verify import verify
from lab_backup.repository.backups import Backup, Backups
from lab_backup.repository.repository import Repository
from lab_backup.sources.podman.connection import Podman
from lab_backup.sources.podman.errors import PodmanError
from lab_backup.sources.podman.freeze import Hold
from lab_backup.sources.podman.restore import Options
from lab_backup.storage.local import LocalStorage
from support.engine import new_repository
from support.podman_box import IDLE
from support.program import Program
from support.waiting import wait_until

POD = (
    "--hostname", "webhost", "--label", "of=tests", "-p", "18123:80", "--network", "pod-net:ip=10.99.8.9", "--add-host", "there:10.1.1.1",
    "--infra-command", "/bin/sleep 100000",
)  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """Return an empty repository in a folder."""
    storage = LocalStorage.create_root(tmp_path / "repository")
    with new_repository(storage, tmp_path / "cache") as made:
        yield made


@pytest.fixture
def pod(podman_service: PodmanService) -> Iterator[PodmanService]:
    """Run the pod `web` of two containers that share a volume, on a network of its own, and return its service."""
    service = podman_service
    service.run("network", "create", "--subnet", "10.99.8.0/24", "pod-net")
    try:
        service.run("pod", "create", "--name", "web", *POD)
        service.run("run", "-d", "--pod", "web", "--name", "web-app", "-v", "pod-shared:/data", IMAGE, *IDLE)
        service.run(
            "run", "-d", "--pod", "web", "--name", "db", "-v", "pod-shared:/seen", "-v", "pod-own:/own", IMAGE, *IDLE
        )
        service.run("exec", "web-app", "sh", "-c", "echo shared > /data/file; echo app > /etc/app")
        service.run("exec", "db", "sh", "-c", "echo own > /own/file; echo db > /etc/db")
        yield service
    finally:
        remove(service)


def remove(service: PodmanService) -> None:
    """Remove everything that the tests here make."""
    for name in ("web", "again"):
        service.run("pod", "rm", "-f", "-t", "0", name, check=False)
    for volume in ("pod-shared", "pod-own", "pod-shared-2", "pod-own-2"):
        service.run("volume", "rm", volume, check=False)
    service.run("network", "rm", "-f", "pod-net", check=False)


def back_up(repository: Repository, service: PodmanService, options: ContainerOptions | None = None) -> Backup:
    """Back the pod up and return the backup."""
    made = backup_pod(repository, "web", connect=service.uri, options=options)
    return Backups(repository).find(made.backup)


def told(service: PodmanService, name: str = "web") -> Any:
    """Return what the service tells about a pod."""
    with Podman(service.uri) as podman:
        pod = podman.get(f"pods/{name}/json")
    return {**pod, "SharedNamespaces": sorted(pod.get("SharedNamespaces") or [])}  # told in any order


def states(service: PodmanService, *names: str) -> list[str]:
    """Return the states of some containers."""
    with Podman(service.uri) as podman:
        return [podman.get(f"containers/{name}/json")["State"]["Status"] for name in names]


def sh(service: PodmanService, name: str, command: str) -> str:
    """Run a command in a container."""
    return service.run("exec", name, "sh", "-c", command).stdout.decode()


def test_all_comes_back_from_nothing(repository: Repository, pod: PodmanService) -> None:
    """Full, incremental, removal of everything, restore: settings of the pod, containers, shared and own volumes are as they were."""
    first = back_up(repository, pod)
    assert (first.manifest.kind, first.manifest.consistency, first.manifest.warnings) == ("full", "crash", ())
    assert any(note.startswith("db, web-app were paused for") for note in first.manifest.notes)
    assert sorted(tree.name for tree in first.manifest.trees) == [
        "member.db.rootfs",
        "member.web-app.rootfs",
        "volume.pod-own",
        "volume.pod-shared",
    ]
    sh(pod, "db", "echo more >> /seen/file")
    second = back_up(repository, pod)
    assert (second.manifest.kind, second.manifest.parent) == ("incremental", first.id)
    assert second.manifest.statistics.bytes_read < 10_000
    assert [file.path for file in list_files(repository, choose_tree(second, volume="pod-own"))] == ["file"]
    report = verify(repository, read_data=True)
    assert (report.corrupt, report.missing) == (0, 0)
    before = told(pod)
    remove(pod)
    result = restore_pod(repository, second, connect=pod.uri, start=True)
    assert (result.differences, result.warnings, result.notes) == ((), (), ())
    assert (result.containers, result.networks) == (("db", "web-app"), ("pod-net",))
    after = told(pod)
    for key in ("Name", "Labels", "Hostname", "ExitPolicy", "SharedNamespaces", "InfraConfig", "CreateInfra"):
        assert after[key] == before[key], key
    assert states(pod, "db", "web-app") == ["running", "running"]
    assert sh(pod, "web-app", "cat /data/file /etc/app; hostname") == "shared\nmore\napp\nwebhost\n"
    assert sh(pod, "db", "cat /seen/file /own/file /etc/db; grep -c there /etc/hosts; ip -o addr show | grep -c 10.99.8.9") == (
        "shared\nmore\nown\ndb\n1\n1\n"
    )  # fmt: skip
    # one of its volumes alone
    with pytest.raises(UsageError, match="2 volumes"):
        restore_volume(repository, first, connect=pod.uri, to="pod-own-2")
    assert restore_volume(repository, first, "pod-own", connect=pod.uri, to="pod-own-2").differences == ()
    pod.run("volume", "rm", "pod-own-2")
    # beside it, under another name, not started
    told_beside = restore_pod(
        repository, first, connect=pod.uri, options=Options(name="again", volume_suffix="-2"), dry_run=True
    )
    assert told_beside.conflicts == ()
    beside = restore_pod(repository, first, connect=pod.uri, options=Options(name="again", volume_suffix="-2"))
    assert beside.containers == ("again-db", "again-app")
    assert any("published ports" in note for note in beside.notes)
    assert states(pod, "again-db", "again-app", "db") == ["exited", "exited", "running"]
    pod.run("pod", "start", "again")
    assert sh(pod, "again-app", "cat /data/file /etc/app") == "shared\napp\n"


def test_what_is_there_is_not_touched(
    repository: Repository, pod: PodmanService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conflicts are told and refused; an overwrite that fails puts all back; one that succeeds replaces containers and files."""
    backup = back_up(repository, pod)
    sh(pod, "web-app", "echo later > /data/later")
    dry = restore_pod(repository, backup, connect=pod.uri, dry_run=True)
    assert {conflict.partition(" (")[0] for conflict in dry.conflicts} == {
        "pod web", "container db", "volume pod-shared", "volume pod-own", "container web-app",
    }  # fmt: skip
    with pytest.raises(TargetExistsError):
        restore_pod(repository, backup, connect=pod.uri)

    def fail(*_: object) -> list[str]:
        raise PodmanError("the last moment")

    with monkeypatch.context() as broken:
        broken.setattr(restoring, "compared", fail)
        with pytest.raises(PodmanError, match="last moment"):
            restore_pod(repository, backup, connect=pod.uri, options=Options(overwrite=True))
    assert states(pod, "db", "web-app") == ["running", "running"]
    assert sh(pod, "web-app", "cat /data/later /data/file") == "later\nshared\n"
    result = restore_pod(repository, backup, connect=pod.uri, options=Options(overwrite=True), start=True)
    assert result.differences == ()
    assert sh(pod, "web-app", "ls /data") == "file\n"
    assert len(told(pod)["Containers"]) == 3
    pod.run("pod", "rm", "-f", "-t", "0", "web")
    pod.run("pod", "create", "--name", "web", "--label", "of=others", "--infra-command", "/bin/sleep 100000")
    with pytest.raises(TargetExistsError, match="other settings"):
        restore_pod(repository, backup, connect=pod.uri, options=Options(overwrite=True))


def test_one_moment(repository: Repository, pod: PodmanService) -> None:
    """One container writes to both volumes in turn: the backup has the same in both, for both containers were held at once."""
    write = "i=0; while [ ! -e /seen/stop ]; do i=$((i+1)); ln -sf $i /seen/one; ln -sf $i /own/two; done"
    writer = threading.Thread(target=sh, args=(pod, "db", write))
    with Podman(pod.uri) as podman:
        shared, own = (Path(podman.get(f"volumes/{name}/json")["Mountpoint"]) for name in ("pod-shared", "pod-own"))
    writer.start()
    try:
        wait_until((own / "two").is_symlink)
        backup = back_up(repository, pod)
    finally:
        (shared / "stop").touch()
        writer.join(60)
    links = {
        file.path: file.target
        for volume in ("pod-shared", "pod-own")
        for file in list_files(repository, choose_tree(backup, volume=volume))
    }
    assert int(links["one"]) - int(links["two"]) in {0, 1}
    assert states(pod, "db", "web-app") == ["running", "running"]


def test_stopped_and_without_what_holds_it(repository: Repository, podman_service: PodmanService) -> None:
    """A pod without an infra container comes back without; stopping works too, and only what ran is started; what one required of another is told; an empty pod and an unknown one are refused."""
    with pytest.raises(NotFoundError):
        back_up(repository, podman_service)
    podman_service.run("pod", "create", "--name", "web", "--infra=false")
    try:
        with pytest.raises(UsageError, match="no containers"):
            back_up(repository, podman_service)
        podman_service.run("run", "-d", "--pod", "web", "--name", "db", IMAGE, *IDLE)
        podman_service.run("create", "--pod", "web", "--name", "app", "--requires", "db", IMAGE, *IDLE)
        backup = back_up(repository, podman_service, ContainerOptions(hold=Hold.STOP))
        assert backup.manifest.consistency == "offline"
        assert states(podman_service, "db") == ["running"]
        remove(podman_service)
        result = restore_pod(repository, backup, connect=podman_service.uri, start=True)
        # what has never run has no address yet, and gets one when it is prepared
        assert [text for text in result.differences if not text.startswith("app: ")] == []
        assert "app starts without waiting for db, which it was made to require" in result.warnings
        assert told(podman_service)["CreateInfra"] is False
        assert states(podman_service, "db", "app") == ["running", "initialized"]
    finally:
        remove(podman_service)


def test_on_the_command_line(tmp_path: Path, pod: PodmanService) -> None:
    """Backup, list of conflicts and restore by their commands."""
    program = Program(tmp_path, CONTAINER_HOST=pod.uri)
    program.ok("repo", "init", tmp_path / "cli", "--no-encryption")
    where = ("--repo", tmp_path / "cli")
    made = program.ok("backup", "pod", "web", *where)
    assert (made["source_kind"], made["source"]) == ("pod", "web")
    dry = program("restore", "pod", "latest:pod/web", *where, "--dry-run")
    assert dry.code == 8
    assert "in the way: pod web" in dry.stdout
    done = program.ok("restore", "pod", "latest:pod/web", *where, "--name", "again", "--volume-suffix=-2", "--start")
    assert done["containers"] == ["again-db", "again-app"]
    assert sh(pod, "again-db", "cat /own/file") == "own\n"
