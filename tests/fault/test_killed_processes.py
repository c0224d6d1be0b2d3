"""Real processes on a real folder: killed at every write, killed at any moment, and several at once over one cache."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from lab_backup.operations.backup import backup_image
from lab_backup.operations.collect import collect
from lab_backup.operations.lifecycle import delete
from lab_backup.operations.verify import verify
from lab_backup.repository.backups import Backups
from lab_backup.repository.create import create_repository
from lab_backup.storage.local import LocalStorage
from lab_backup.units import KiB, MiB
from support.engine import restored
from support.engine_process import (
    Child,
    age,
    back_up_image,
    collect_garbage,
    delete_now,
    open_local,
    verify_all,
)
from support.faulty import KILLED, CrashPoint

SIZE = 2 * MiB


class Place:
    """A repository in a folder, a cache, and images; what the image of each name held at its backups."""

    def __init__(self, directory: Path) -> None:
        """Make an empty repository."""
        self.directory = directory
        self.root, self.cache = directory / "repository", directory / "cache"
        storage = LocalStorage.create_root(self.root)
        create_repository(storage, passphrase=None, chunk_size=16 * KiB, compression="none")
        storage.close()
        self.random = Random(20300101)

    def image(self, name: str, *, like: bytes = b"", size: int = SIZE) -> Path:
        """Write an image that begins with `like` and goes on at random."""
        path = self.directory / f"{name}.raw"
        path.write_bytes(like + self.random.randbytes(size - len(like)))
        return path

    def check(self, expected: dict[str, bytes], *, cache: Path | None = None) -> None:
        """Restore every backup there is: each is of an image in `expected`, by name, and holds its bytes."""
        with open_local(self.root, cache or self.cache) as repository:
            for backup in Backups(repository).all():
                assert restored(repository, backup.id, "disk") == expected[backup.manifest.source.name]

    def settle(self) -> None:
        """Let days pass and collect, until all that is garbage is gone."""
        for hours in (25, 25, 25, 25, 200, 200):
            age(self.root, hours=hours)
            with open_local(self.root, self.directory / "settler") as repository:
                collect(repository)
        left = {path.parent.name for path in self.root.rglob("*") if path.is_file()}
        assert not left & {"condemned", "removed", "leases", "damaged", ".tmp"}, left

    def names(self) -> set[str]:
        """Return the names of the images that there are backups of."""
        with open_local(self.root, self.cache) as repository:
            return {backup.manifest.source.name for backup in Backups(repository).all()}


def _backup(place: Place) -> tuple[Callable[..., None], tuple[object, ...]]:
    return back_up_image, (place.directory / "next.raw",)


def _collection(place: Place) -> tuple[Callable[..., None], tuple[object, ...]]:
    with open_local(place.root, place.cache) as repository:
        waste = backup_image(repository, place.image("waste", like=b"x" * 64 * KiB), name="waste", format="raw").backup
        delete(repository, waste, now=True)
        age(place.root, hours=25)
        collect(repository)
    age(place.root, hours=25)
    return collect_garbage, ()


def _deletion(place: Place) -> tuple[Callable[..., None], tuple[object, ...]]:
    with open_local(place.root, place.cache) as repository:
        doomed = backup_image(repository, place.image("doomed"), name="doomed", format="raw").backup
    return delete_now, (doomed,)


@pytest.mark.parametrize("make", [_backup, _collection, _deletion], ids=["backup", "collection", "deletion"])
def test_a_process_that_dies_at_any_write_harms_nobody(
    fast_directory: Path, make: Callable[[Place], tuple[Callable[..., None], tuple[object, ...]]]
) -> None:
    """Killed in the kernel's sense before and after each write: earlier backups restore, and the same work done again succeeds."""
    place = Place(fast_directory)
    kept = place.image("kept")
    expected = {
        "kept": kept.read_bytes(),
        "next": place.image("next", like=kept.read_bytes()[: SIZE // 2]).read_bytes(),
    }
    with open_local(place.root, place.cache) as repository:
        backup_image(repository, kept, name="kept", format="raw")
    work, args = make(place)
    doomed = place.directory / "doomed.raw"
    if doomed.exists():
        expected["doomed"] = doomed.read_bytes()
    template = place.directory / "template"
    place.root.rename(template)
    for write in itertools.count(1):
        statuses = []
        for when in ("before", "after") if write % 3 == 0 else ("after",):
            shutil.rmtree(place.root, ignore_errors=True)
            shutil.copytree(template, place.root)
            with Child(work, place.root, place.cache, *args, CrashPoint(write, when, kill=True)) as child:
                statuses.append(child.wait())
            place.check(expected)
            place.check(expected, cache=place.directory / f"fresh-{write}-{when}")
            assert "kept" in place.names()
        if 0 in statuses:
            break
        assert set(statuses) == {KILLED}
        with Child(work, place.root, place.cache, *args) as child:
            status = child.wait()
        assert status == 0 or (work is delete_now and "doomed" not in place.names())
    assert write > 3
    place.settle()
    place.check(expected)
    verify_all(place.root, place.cache)


def test_backups_killed_at_random_moments_leave_nothing_but_garbage(fast_directory: Path) -> None:
    """Kill -9 at any time, also amid a write: no backup that is there is less than whole, and the next one succeeds."""
    place = Place(fast_directory)
    image = place.image("guest", size=24 * MiB)
    expected = {"guest": image.read_bytes()}
    killed = 0
    for _ in range(12):
        with Child(back_up_image, place.root, place.cache, image) as child:
            killed += child.kill_after(place.random.uniform(0.01, 0.35))
        with open_local(place.root, place.cache) as repository:
            assert not verify(repository).damage
        place.check(expected)
    assert killed > 3
    with Child(back_up_image, place.root, place.cache, image) as child:
        assert child.wait() == 0
    assert place.names() == {"guest"}
    age(place.root, hours=25)
    with open_local(place.root, place.cache) as repository:
        collect(repository)
    place.settle()
    place.check(expected)
    verify_all(place.root, place.directory / "fresh")


def test_processes_share_a_cache(fast_directory: Path) -> None:
    """Two backups, a collection and a verification at once, over one repository and one cache: all succeed, again and again."""
    place = Place(fast_directory)
    expected: dict[str, bytes] = {}
    for turn in range(4):
        common = place.random.randbytes(256 * KiB)
        images = [place.image(f"{name}{turn}", like=common, size=8 * MiB) for name in ("one", "two")]
        expected |= {image.stem: image.read_bytes() for image in images}
        children = [
            Child(back_up_image, place.root, place.cache, images[0]),
            Child(back_up_image, place.root, place.cache, images[1]),
            Child(collect_garbage, place.root, place.cache),
            Child(verify_all, place.root, place.cache),
        ]
        assert [child.wait() for child in children] == [0] * 4
        with open_local(place.root, place.cache) as repository:
            doomed = Backups(repository).find(f"latest:one{turn}")
            delete(repository, doomed.id, now=True)
        age(place.root, hours=26)
    assert place.names() == {f"two{turn}" for turn in range(4)}
    place.check(expected)
    place.settle()
    place.check(expected, cache=place.directory / "fresh")
    verify_all(place.root, place.cache)
