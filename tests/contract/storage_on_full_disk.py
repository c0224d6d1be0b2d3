"""What a local store does when the disk is full. `test_storage_local.py` runs this on a small disk: argv[1] is its mount point."""

import sys
from pathlib import Path

import pytest

from lab_backup.storage.base import NoSpaceError, ObjectNotFoundError
from lab_backup.storage.local import LocalStorage
from lab_backup.units import MiB

PIECE = bytes(range(256)) * 1024  # 256 KiB


def main(root: Path) -> None:
    """Fill the disk, look at what is left, delete, and write again."""
    store = LocalStorage.create_root(root / "store")
    store.upload("keep/small", b"old content")
    written: list[str] = []

    def fill() -> None:
        while len(written) < 1000:
            path = f"fill/{len(written)}"
            store.upload(path, PIECE)
            written.append(path)

    with pytest.raises(NoSpaceError) as full:
        fill()
    assert full.value.hint
    with pytest.raises(NoSpaceError, match="keep/small"):
        store.upload("keep/small", PIECE * 8)
    assert store.read("keep/small") == b"old content"
    with pytest.raises(NoSpaceError, match="keep/new"):
        store.create("keep/new", PIECE * 8)
    with pytest.raises(ObjectNotFoundError):
        store.stat("keep/new")

    assert sorted(info.path for info in store.list()) == sorted([*written, "keep/small"])
    assert all(info.size == len(PIECE) for info in store.list("fill"))
    assert list((root / "store" / ".tmp").iterdir()) == [], "a failed upload left its temporary file"

    free = store.get_usage().free
    assert free is not None
    assert free < 1 * MiB
    for path in written:
        store.delete(path)
    assert [info.path for info in store.list()] == ["keep/small"]
    store.upload("keep/new", PIECE)
    assert store.read("keep/new") == PIECE
    print(len(written))  # noqa: T201  # the answer to the test that runs this


if __name__ == "__main__":
    main(Path(sys.argv[1]))
