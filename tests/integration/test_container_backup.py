"""Whole containers of a real Podman service through a repository: everything comes back, only what changed is read, and nothing suffers on the way."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab_backup.demo.podman_service import PodmanService
from lab_backup.errors import LabBackupError, NotFoundError, TargetExistsError, UsageError
from lab_backup.operations import backup_container as backing_up
from lab_backup.operations import held_files
from lab_backup.operations import restore_container as restoring
from lab_backup.operations.backup_container import ContainerOptions, backup_container
from lab_backup.operations.files import choose_tree, list_files, restore_files
from lab_backup.operations.restore_container import restore_container
from lab_backup.operations.restore_volume import restore_volume
from lab_backup.operations.verify import verify
from lab_backup.repository.backups import Backup, Backups
from lab_backup.repository.repository import Repository
from lab_backup.sources.files.compare import differences
from lab_backup.sources.files.tree import LocalFileTree
from lab_backup.sources.podman.connection import Podman
from lab_backup.sources.podman.errors import PodmanError
from lab_backup.sources.podman.freeze import Hold, Hooks
from lab_backup.sources.podman.restore import Options
from lab_backup.storage.local import LocalStorage
from support.engine import new_repository
from support.podman_box import Box, container
from support.waiting import wait_until

FILL = """
set -e
dd if=/dev/urandom of=/data/big bs=1M count=3 2>/dev/null
mkdir -p /data/many/deep
for i in $(seq 200); do echo "file $i" > /data/many/$i; done
ln /data/many/1 /data/many/deep/link
ln -s ../nowhere /data/symlink
mkfifo /data/fifo
truncate -s 50000000 /data/sparse
chown 1234:70000 /data/many/2; chmod 4711 /data/many/2
touch -d '2001-02-03 04:05:06' /data/many/3
printf x > "/data/$(printf 'odd\\nname')"
echo added > /etc/added; rm /etc/passwd; chmod 700 /var
"""


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """Return an empty repository in a folder."""
    storage = LocalStorage.create_root(tmp_path / "repository")
    with new_repository(storage, tmp_path / "cache") as made:
        yield made


@pytest.fixture
def box(podman_service: PodmanService) -> Iterator[Box]:
    """Return a running container with files of all kinds, in its volume and of its own, on a network of its own."""
    podman_service.run("network", "create", "--subnet", "10.99.9.0/24", "backup-net")
    podman_service.import_image("localhost/backup:1", changes=("ENV COLOUR=blue",))
    try:
        options = ("--network", "backup-net:ip=10.99.9.5", "-e", "A=b", "--label", "of=tests")
        with container(podman_service, *options, image="localhost/backup:1") as made:
            made.sh(FILL)
            yield made
    finally:
        podman_service.run("network", "rm", "-f", "backup-net")
        podman_service.run("rmi", "-f", "localhost/backup:1", check=False)


def back_up(repository: Repository, box: Box, options: ContainerOptions | None = None) -> Backup:
    """Back the box up and return the backup."""
    made = backup_container(repository, box.name, connect=box.service.uri, options=options)
    return Backups(repository).find(made.backup)


def volume_path(box: Box, name: str | None = None) -> Path:
    """Return where a volume's files are on the host."""
    with Podman(box.service.uri) as podman:
        return Path(podman.get(f"volumes/{name or box.volume}/json")["Mountpoint"])


def remove(box: Box) -> None:
    """Remove the container, its volume, its network and its image."""
    box.service.run("rm", "-f", "-t", "0", box.name)
    box.service.run("volume", "rm", box.volume)
    box.service.run("network", "rm", "backup-net")
    box.service.run("rmi", "-f", "localhost/backup:1")


def copy_of(folder: Path, to: Path) -> Path:
    """Copy a folder with all metadata."""
    subprocess.run(["/usr/bin/cp", "-a", str(folder), str(to)], check=True, timeout=60)
    return to


def test_all_comes_back_from_nothing(repository: Repository, box: Box, tmp_path: Path) -> None:
    """Full, change, incremental; everything removed; restored: files with all metadata, settings, image, network are as they were."""
    big = volume_path(box) / "big"
    wait_until(
        lambda: time.time() > big.stat().st_ctime + 2.5
    )  # what was changed just now is read again, for clocks tick slowly
    first = back_up(repository, box)
    assert (first.manifest.kind, first.manifest.consistency, first.manifest.warnings) == ("full", "crash", ())
    box.sh("echo changed >> /data/many/7; rm /data/many/8; mv /data/many/9 /data/many/renamed; echo new > /etc/new")
    second = back_up(repository, box, ContainerOptions(hooks=Hooks(before="echo quiet > /data/quiet")))
    assert (second.manifest.kind, second.manifest.parent) == ("incremental", first.id)
    assert second.manifest.consistency == "application"
    # the image and 3 MiB of unchanged files were neither read nor stored again
    assert second.manifest.statistics.bytes_read < 100_000
    assert second.manifest.statistics.bytes_stored < 100_000
    box.service.run("pause", box.name)
    before = copy_of(volume_path(box), tmp_path / "before")
    remove(box)
    result = restore_container(repository, second, connect=box.service.uri, start=True)
    assert (result.differences, result.warnings) == ((), ())
    assert (result.image_loaded, result.networks, result.started) == (True, ("backup-net",), True)
    with LocalFileTree(before) as old, LocalFileTree(volume_path(box)) as new:
        assert list(differences(old, new)) == []
    assert box.sh("cat /etc/added /etc/new; ls /etc/passwd 2>/dev/null; stat -c %a /var; echo $COLOUR $A") == (
        "added\nnew\n700\nblue b\n"
    )
    report = verify(repository, read_data=True)
    assert (report.corrupt, report.missing) == (0, 0)
    # the first one as well, beside it
    options = Options(name=f"{box.name}-old", volume_suffix="-old")
    old_result = restore_container(repository, first, connect=box.service.uri, options=options)
    try:
        assert old_result.started is False
        there = volume_path(box, f"{box.volume}-old")
        assert (there / "many/8").read_text() == "file 8\n"
        assert not (there / "quiet").exists()
    finally:
        box.service.run("rm", "-f", "-t", "0", f"{box.name}-old")
        box.service.run("volume", "rm", f"{box.volume}-old")


def test_what_is_there_is_not_touched(repository: Repository, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conflict is told and refused; an overwrite that fails at its end puts everything back; one that succeeds leaves nothing of the old."""
    backup = back_up(repository, box)
    box.sh("echo later > /data/later")
    told = restore_container(repository, backup, connect=box.service.uri, dry_run=True)
    assert told.conflicts == (f"container {box.name} (running)", f"volume {box.volume}")
    with pytest.raises(TargetExistsError):
        restore_container(repository, backup, connect=box.service.uri)
    assert box.sh("cat /data/later") == "later\n"

    def fail(*_: object) -> list[str]:
        raise PodmanError("the last moment")

    with monkeypatch.context() as broken:
        broken.setattr(restoring, "compared", fail)
        with pytest.raises(PodmanError, match="last moment"):
            restore_container(repository, backup, connect=box.service.uri, options=Options(overwrite=True))
    with Podman(box.service.uri) as podman:
        assert box.state(podman) == "running"
    assert box.sh("cat /data/later /data/many/1") == "later\nfile 1\n"
    assert [path.name for path in volume_path(box).parent.iterdir()] == ["_data"]
    result = restore_container(repository, backup, connect=box.service.uri, options=Options(overwrite=True), start=True)
    assert result.differences == ()
    assert box.sh("ls /data/later || true; cat /data/many/1") == "file 1\n"
    assert [path.name for path in volume_path(box).parent.iterdir()] == ["_data"]
    listed = box.service.run("ps", "-a", "--format", "{{.Names}}").stdout.decode().split()
    assert [name for name in listed if name.startswith(box.name)] == [box.name]


def test_a_volume_that_others_use_is_not_replaced(repository: Repository, box: Box) -> None:
    """Another running container would go on with the old files: it is a conflict, also with overwrite."""
    backup = back_up(repository, box)
    with container(box.service, "-v", f"{box.volume}:/other", image="localhost/backup:1") as other:
        told = restore_container(
            repository, backup, connect=box.service.uri, options=Options(overwrite=True), dry_run=True
        )
        assert told.conflicts == (f"volume {box.volume} is in use by {other.name}",)
        together = back_up(repository, box)
        assert any(other.name in note for note in together.manifest.notes)


def test_single_volumes_and_files(repository: Repository, box: Box, tmp_path: Path) -> None:
    """A volume comes back under another name; files and folders into a folder; what is not there is told."""
    backup = back_up(repository, box)
    tree = choose_tree(backup, volume=box.volume)
    names = [file.path for file in list_files(repository, tree)]
    assert names == ["big", "fifo", "many", "odd\\nname", "sparse", "symlink"]
    assert len(list_files(repository, tree, "many", recursive=True)) == 202
    done = restore_files(repository, backup, tree, ["/many/deep/", "many/2", "many/1", "symlink"], to=tmp_path / "out")
    assert done.warnings == ()
    status = (tmp_path / "out/many/2").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1234, 70000, 0o4711)
    assert (tmp_path / "out/many/deep/link").read_text() == "file 1\n"
    assert {path.name for path in (tmp_path / "out/many").iterdir()} == {"1", "2", "deep"}
    with pytest.raises(NotFoundError):
        restore_files(repository, backup, tree, ["nothing"], to=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(UsageError, match="2 trees of files"):
        choose_tree(backup)
    try:
        restored = restore_volume(repository, backup, box.volume, connect=box.service.uri, to="again")
        assert (restored.differences, restored.warnings) == ((), ())
        with LocalFileTree(volume_path(box)) as old, LocalFileTree(volume_path(box, "again")) as new:
            assert list(differences(old, new)) == []
        with pytest.raises(TargetExistsError):
            restore_volume(repository, backup, box.volume, connect=box.service.uri, to="again")
    finally:
        box.service.run("volume", "rm", "again")


@pytest.mark.parametrize(("hold", "level"), [(Hold.STOP, "offline"), (Hold.LIVE, "fuzzy")])
def test_how_it_is_held(repository: Repository, box: Box, hold: Hold, level: str) -> None:
    """Stopped and started again, or left running: the level says so, and it runs afterwards."""
    backup = back_up(repository, box, ContainerOptions(hold=hold))
    assert backup.manifest.consistency == level
    with Podman(box.service.uri) as podman:
        assert box.state(podman) == "running"


def test_written_to_all_the_time(repository: Repository, box: Box, tmp_path: Path) -> None:
    """A container that writes without end gives a backup of one moment: two files that it always changes together are alike."""
    stop = threading.Event()

    def write() -> None:
        box.service.run(
            "exec", box.name, "sh", "-c",
            "i=0; while [ ! -e /data/stop ]; do i=$((i+1)); echo $i > /data/one; echo $i > /data/two; done",
        )  # fmt: skip
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until((volume_path(box) / "two").exists)
        backups = [back_up(repository, box) for _ in range(3)]
    finally:
        (volume_path(box) / "stop").touch()
        writer.join(60)
    assert stop.is_set()
    for number, backup in enumerate(backups):
        assert backup.manifest.consistency == "crash"
        out = tmp_path / str(number)
        restore_files(repository, backup, choose_tree(backup, volume=box.volume), ["one", "two"], to=out)
        one, two = ((out / name).read_text().strip() or "0" for name in ("one", "two"))
        assert int(one) - int(two) in {0, 1} or "0" in {one, two}  # a shell empties a file before it writes it


_KILLED = """
import sys
from pathlib import Path
from lab_backup.operations import backup_container as module
from lab_backup.operations import held_files
from lab_backup.repository.repository import open_repository
from lab_backup.sources.podman.freeze import Hold, Hooks
from lab_backup.storage.local import LocalStorage
import time
place, cache, uri, name, hold = sys.argv[1:]
real = held_files.LocalFileTree
class Slow(real):
    passes = 0
    def records(self):
        for record in super().records():
            yield record
            if record.path == b"many/5":
                Slow.passes += 1
                if Slow.passes == 2:
                    print("holding", flush=True)
                    time.sleep(300)
held_files.LocalFileTree = Slow
options = module.ContainerOptions(hold=Hold(hold), hooks=Hooks(after="echo after > /data/after"), pause_limit=300)
with open_repository(LocalStorage(Path(place)), passphrase=None, cache_directory=Path(cache)) as repository:
    module.backup_container(repository, name, connect=uri, options=options)
"""


@pytest.mark.parametrize("hold", ["pause", "stop"])
def test_killed_while_it_holds(repository: Repository, box: Box, tmp_path: Path, hold: str) -> None:
    """Kill -9 while the container is held: it runs again within seconds, its command was run, no claim stays, and the next backup is sound."""
    arguments = [tmp_path / "repository", tmp_path / "cache2", box.service.uri, box.name, hold]
    with subprocess.Popen([sys.executable, "-c", _KILLED, *map(str, arguments)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"holding\n"
        with Podman(box.service.uri) as podman:
            assert box.state(podman) in {"paused", "exited"}
            process.send_signal(signal.SIGKILL)
            process.wait(30)
            wait_until(lambda: box.state(podman) == "running", 30)
            wait_until((volume_path(box) / "after").exists, 30)
            wait_until(lambda: "lab-backup-claim" not in box.service.run("volume", "ls", "-q").stdout.decode(), 30)
    assert Backups(repository).all() == []
    backup = back_up(repository, box)
    report = verify(repository, [backup.id], read_data=True)
    assert (report.corrupt, report.missing) == (0, 0)


def test_removed_in_the_middle(repository: Repository, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that is removed while it is backed up ends the backup with an error, and nothing is published."""
    real = held_files.store_held

    def store(*arguments: object) -> None:
        box.service.run("rm", "-f", "-t", "0", box.name)
        real(*arguments)  # type: ignore[arg-type]  # handed on as they are

    monkeypatch.setattr(backing_up, "store_held", store)
    with pytest.raises(LabBackupError):
        back_up(repository, box)
    assert Backups(repository).all() == []


def test_what_is_asked_for_must_be_there(repository: Repository, box: Box) -> None:
    """Unknown containers and volumes are named; a backup of a container is no VM."""
    with pytest.raises(NotFoundError):
        backup_container(repository, "nobody", connect=box.service.uri)
    with pytest.raises(NotFoundError, match="has no volume"):
        back_up(repository, box, ContainerOptions(volumes=("nothing",)))
    alone = back_up(repository, box, ContainerOptions(volumes=()))
    assert [tree.name for tree in alone.manifest.trees] == ["rootfs"]
    assert any("not asked for" in note for note in alone.manifest.notes)
