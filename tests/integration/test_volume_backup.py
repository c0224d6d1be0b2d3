"""Volumes of a real Podman service as sources of their own: incrementally, held still with all who mount them, and back with every file."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from lab_backup.demo.podman_service import PodmanService
from lab_backup.errors import NotFoundError, TargetExistsError, UsageError
from lab_backup.operations.backup_container import backup_container
from lab_backup.operations.backup_volume import VolumeOptions, backup_volume
from lab_backup.operations.catalogue import find_backup
from lab_backup.operations.files import choose_tree, list_files, restore_files
from lab_backup.operations.prune import prune
from lab_backup.operations.restore_container import restore_container, saved_container
from lab_backup.operations.restore_volume import restore_volume
from lab_backup.operations.verify import verify
from lab_backup.policy.retention import Policy
from lab_backup.repository.backups import Backup, Backups
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.sources.files.compare import differences
from lab_backup.sources.files.tree import LocalFileTree
from lab_backup.sources.podman.claim import PREFIX
from lab_backup.sources.podman.connection import Podman
from lab_backup.sources.podman.errors import PodmanError
from lab_backup.sources.podman.freeze import Hold
from lab_backup.sources.podman.restore import Options
from lab_backup.sources.podman.saved import VOLUME, SavedVolume, SavedVolumeSource
from lab_backup.sources.podman.volume import lies_elsewhere
from lab_backup.storage.local import LocalStorage
from support.engine import new_repository
from support.podman_box import Box, container
from support.program import Program
from support.waiting import wait_until

FILL = """
set -e
dd if=/dev/urandom of=/data/big bs=1M count=2 2>/dev/null
mkdir -p /data/many
for i in $(seq 100); do echo "file $i" > /data/many/$i; done
ln /data/many/1 /data/link; ln -s ../../nowhere /data/symlink; mkfifo /data/fifo; truncate -s 5000000 /data/sparse
chown 1234:70000 /data/many/2; chmod 4711 /data/many/2
"""


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """Return an empty repository in a folder."""
    storage = LocalStorage.create_root(tmp_path / "repository")
    with new_repository(storage, tmp_path / "cache") as made:
        yield made


@pytest.fixture
def box(podman_service: PodmanService) -> Iterator[Box]:
    """Return a running container whose volume has a label and files of all kinds."""
    with container(podman_service) as made:
        made.sh(FILL)
        yield made


@pytest.fixture
def lonely(podman_service: PodmanService) -> Iterator[str]:
    """Return the name of a volume that no container mounts, with labels and options."""
    podman_service.run("volume", "create", "--label", "of=tests", "-o", "o=noquota", "lonely")
    try:
        folder(podman_service, "lonely").joinpath("a").write_text("alone\n")
        yield "lonely"
    finally:
        podman_service.run("volume", "rm", "lonely")


def folder(service: PodmanService, name: str) -> Path:
    """Return where a volume's files are on the host."""
    with Podman(service.uri) as podman:
        return Path(podman.get(f"volumes/{name}/json")["Mountpoint"])


def back_up(repository: Repository, service: PodmanService, name: str, **options: object) -> Backup:
    """Back the volume up and return the backup."""
    chosen = VolumeOptions(**options)  # type: ignore[arg-type]  # each test names fields that exist
    made = backup_volume(repository, name, connect=service.uri, options=chosen)
    return Backups(repository).find(made.backup)


def test_a_volume_comes_back(repository: Repository, box: Box, tmp_path: Path) -> None:
    """Full, change, incremental, removal, restore: every file is as it was; unchanged ones were not read; the rest of the program knows the backup."""
    big = folder(box.service, box.volume) / "big"
    wait_until(lambda: time.time() > big.stat().st_ctime + 2.5)  # what was changed just now is read again
    first = back_up(repository, box.service, box.volume)
    assert (first.manifest.kind, first.manifest.consistency, first.manifest.warnings) == ("full", "crash", ())
    assert any(note.startswith(f"{box.name} was paused for") for note in first.manifest.notes)
    box.sh("echo more >> /data/many/3; rm /data/many/4")
    second = back_up(repository, box.service, box.volume)
    assert (second.manifest.kind, second.manifest.parent) == ("incremental", first.id)
    assert second.manifest.statistics.bytes_read < 100_000
    assert find_backup(repository, f"latest:volume/{box.volume}").id == second.id
    tree = choose_tree(second)
    assert {file.path for file in list_files(repository, tree)} == {
        "big",
        "fifo",
        "link",
        "many",
        "sparse",
        "symlink",
    }
    restore_files(repository, second, tree, ["many/3"], to=tmp_path / "out")
    assert (tmp_path / "out/many/3").read_text() == "file 3\nmore\n"
    report = verify(repository, read_data=True)
    assert (report.corrupt, report.missing) == (0, 0)
    box.service.run("pause", box.name)
    try:
        result = restore_volume(repository, second, connect=box.service.uri, to="again")
        assert (result.differences, result.warnings, result.source) == ((), (), box.volume)
        with (
            LocalFileTree(folder(box.service, box.volume)) as old,
            LocalFileTree(folder(box.service, "again")) as new,
        ):
            assert list(differences(old, new)) == []
        with pytest.raises(TargetExistsError):
            restore_volume(repository, first, connect=box.service.uri, to="again")
    finally:
        box.service.run("volume", "rm", "again", check=False)
    # both kinds of backup keep one volume's files once
    together = backup_container(repository, box.name, connect=box.service.uri)
    fresh = Backups(repository).find(together.backup).manifest.statistics.bytes_new
    assert fresh is not None
    assert fresh < 3_000_000  # its image of 2 MB is new, its 2 MiB of files are not
    prune(repository, Policy(last=1), source=f"volume/{box.volume}")
    kept = {backup.id for backup in Backups(repository).all() if backup.state.deleted is None}
    assert kept == {second.id, together.backup}


def test_all_who_mount_it_are_held(repository: Repository, box: Box) -> None:
    """Two containers that write to one volume are paused for one moment: of two files that both change together, both are alike; all run afterwards."""
    stop = threading.Event()

    def write() -> None:
        box.service.run(
            "exec", box.name, "sh", "-c",
            "i=0; while [ ! -e /data/stop ]; do i=$((i+1)); ln -sf $i /data/one; ln -sf $i /data/two; done",
        )  # fmt: skip
        stop.set()

    with container(box.service, "-v", f"{box.volume}:/other") as other:
        writer = threading.Thread(target=write)
        writer.start()
        try:
            wait_until((folder(box.service, box.volume) / "two").is_symlink)
            backups = [back_up(repository, box.service, box.volume) for _ in range(2)]
        finally:
            (folder(box.service, box.volume) / "stop").touch()
            writer.join(60)
        assert stop.is_set()
        with Podman(box.service.uri) as podman:
            assert (box.state(podman), other.state(podman)) == ("running", "running")
    for backup in backups:
        assert backup.manifest.consistency == "crash"
        assert any("were paused for" in note and other.name in note for note in backup.manifest.notes)
        links = {file.path: file.target for file in list_files(repository, choose_tree(backup))}
        assert int(links["one"]) - int(links["two"]) in {0, 1}


@pytest.mark.parametrize(("hold", "level"), [(Hold.STOP, "offline"), (Hold.LIVE, "fuzzy")])
def test_how_it_is_held(repository: Repository, box: Box, hold: Hold, level: str) -> None:
    """Its containers are stopped and started again, or left running: the level says so, and they run afterwards."""
    assert back_up(repository, box.service, box.volume, hold=hold).manifest.consistency == level
    with Podman(box.service.uri) as podman:
        assert box.state(podman) == "running"


def test_settings_come_back_and_a_failure_leaves_nothing(
    repository: Repository, podman_service: PodmanService, lonely: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume that nobody mounts is `offline`; labels and options are made again; a restore that fails leaves no volume."""
    backup = back_up(repository, podman_service, lonely)
    assert backup.manifest.consistency == "offline"

    def fail(*_: object) -> None:
        raise PodmanError("the last moment")

    with monkeypatch.context() as broken:
        broken.setattr("lab_backup.operations.restore_volume.restore_tree", fail)
        with pytest.raises(PodmanError, match="last moment"):
            restore_volume(repository, backup, connect=podman_service.uri, to="again")
    with Podman(podman_service.uri) as podman:
        assert not podman.exists("volumes/again")
        restore_volume(repository, backup, lonely, connect=podman_service.uri, to="again")
        try:
            old, new = (podman.get(f"volumes/{name}/json") for name in (lonely, "again"))
            assert [new[key] for key in ("Driver", "Labels", "Options")] == [
                old[key] for key in ("Driver", "Labels", "Options")
            ]
        finally:
            podman_service.run("volume", "rm", "again")
    with pytest.raises(NotFoundError, match="has no volume other"):
        restore_volume(repository, backup, "other", connect=podman_service.uri, to="again")


def test_out_of_a_backup_of_its_container(repository: Repository, box: Box, podman_service: PodmanService) -> None:
    """With one volume its name may be left out; the new one has the files."""
    made = backup_container(repository, box.name, connect=podman_service.uri)
    backup = Backups(repository).find(made.backup)
    result = restore_volume(repository, backup, connect=podman_service.uri, to="again")
    try:
        assert result.differences == ()
        assert (folder(podman_service, "again") / "many/7").read_text() == "file 7\n"
    finally:
        podman_service.run("volume", "rm", "again")


def test_what_cannot_be_read_is_said(repository: Repository, podman_service: PodmanService) -> None:
    """No such volume; one in memory; one whose driver has not mounted it; a claim: each is an error before anything is stored."""
    with pytest.raises(NotFoundError):
        back_up(repository, podman_service, "nothing")
    podman_service.run("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "fleeting")
    podman_service.run("volume", "create", "-o", "type=none", "-o", "device=/usr/share", "-o", "o=bind", "elsewhere")
    try:
        with pytest.raises(UsageError, match="in memory"):
            back_up(repository, podman_service, "fleeting")
        with pytest.raises(UsageError, match="cannot be seen"):
            back_up(repository, podman_service, "elsewhere")
        with pytest.raises(UsageError, match="running backup"):
            back_up(repository, podman_service, f"{PREFIX}1")
    finally:
        podman_service.run("volume", "rm", "fleeting", "elsewhere")
    assert Backups(repository).all() == []


def test_a_place_that_a_backup_names_is_not_followed(
    repository: Repository, podman_service: PodmanService, lonely: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A forged backup whose volume is a folder of the host gets a plain volume, and a note says so."""
    backup = back_up(repository, podman_service, lonely)
    entry = backup.manifest.file(VOLUME)
    assert entry is not None
    saved = msgspec.json.decode(Reader(repository).read_file(entry), type=SavedVolumeSource)
    forged = SavedVolume(name=lonely, options={"type": "none", "device": str(tmp_path), "o": "bind"})
    assert lies_elsewhere(forged)
    data = msgspec.json.encode(msgspec.structs.replace(saved, volume=forged))
    monkeypatch.setattr(Reader, "read_file", lambda *_: data)
    result = restore_volume(repository, backup, connect=podman_service.uri, to="again")
    try:
        assert "is a folder on this host" in result.notes[0]
        with Podman(podman_service.uri) as podman:
            assert not podman.get("volumes/again/json").get("Options")
    finally:
        podman_service.run("volume", "rm", "again")


def test_a_container_gets_no_place_of_the_host_by_a_volume(
    repository: Repository, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forged backup of a container whose volume would be a folder of the host is restored with trust only."""
    made = backup_container(repository, box.name, connect=box.service.uri)
    backup = Backups(repository).find(made.backup)
    saved = saved_container(Reader(repository), backup.manifest)
    forged = msgspec.structs.replace(saved.volumes[0], options={"type": "none", "device": "/etc", "o": "bind"})
    told = msgspec.structs.replace(saved, volumes=(forged,))
    monkeypatch.setattr("lab_backup.operations.restore_container.saved_container", lambda *_: told)
    options = Options(name="second", volume_suffix="-second")
    with pytest.raises(UsageError, match="elsewhere"):
        restore_container(repository, backup, connect=box.service.uri, options=options)


def test_on_the_command_line(tmp_path: Path, podman_service: PodmanService, lonely: str) -> None:
    """Backup and restore by their commands; two ways of holding at once are refused."""
    program = Program(tmp_path, CONTAINER_HOST=podman_service.uri)
    program.ok("repo", "init", tmp_path / "cli", "--no-encryption")
    where = ("--repo", tmp_path / "cli")
    made = program.ok("backup", "volume", lonely, *where)
    assert (made["source_kind"], made["source"], made["kind"]) == ("volume", lonely, "full")
    try:
        done = program.ok("restore", "volume", f"latest:volume/{lonely}", *where, "--to", "again")
        assert done["volumes"] == ["again"]
        assert (folder(podman_service, "again") / "a").read_text() == "alone\n"
    finally:
        podman_service.run("volume", "rm", "again")
    assert program("backup", "volume", lonely, *where, "--live", "--stop").code == 2
