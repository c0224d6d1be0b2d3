"""docs/format/streams.md is true: a reader written from it alone reads what the product writes."""

import io
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab_backup.filetree import FileKind
from lab_backup.operations.repositories import init_repository, open_repository
from lab_backup.repository.session import BackupSession, new_backup_id
from lab_backup.sources.files.tree import LocalFileTree
from lab_backup.units import KiB, MiB
from support.independent_reader import IndependentReader
from support.independent_trees import stream, tree
from support.stored_trees import LONG_AGO, NOW, SECOND, File, MemoryTree, flat, publish, store_tree

if TYPE_CHECKING:
    from lab_backup.repository.manifest import TreeEntry

PASSPHRASE = "an honest passphrase"


@pytest.mark.parametrize("compression", ["zstd:3", "none"])
def test_the_document_suffices_to_restore(tmp_path: Path, compression: str) -> None:
    """A tree that grew over three backups, bundles, large files and holes in it, comes back from docs/format alone."""
    url = str(tmp_path / "repository")
    init_repository(url, passphrase=PASSPHRASE, chunk_size=16 * KiB, compression=compression)
    chooser = random.Random(9)
    files: dict[bytes, File] = {}
    expected = {}
    with open_repository(url, passphrase=PASSPHRASE, cache_directory=tmp_path / "cache") as repository:
        previous: TreeEntry | None = None
        for step in range(3):
            touched = LONG_AGO if previous is None else NOW + step * 100 * SECOND - SECOND
            for _ in range(150 if previous is None else 10):
                size = chooser.choice([0, 10, 3000, 3000, 40_000, 300_000])
                path = b"%02d/%02d" % (chooser.randrange(30), chooser.randrange(30))
                files[path] = File([chooser.randbytes(size), chooser.randrange(1, 9999), b"end"], touched_ns=touched)
            summary, written = store_tree(repository, MemoryTree(files), previous, began_ns=NOW + step * 100 * SECOND)
            previous = written.entry
            expected[summary.backup] = {path: flat(file.data) for path, file in files.items()}
    reader = IndependentReader(Path(url), PASSPHRASE)
    for manifest in reader.backups():
        assert manifest["version"] == 2
        (entry,) = manifest["trees"]
        rows = list(tree(reader, entry))
        assert {row["path"]: content for row, content in rows if content is not None} == expected[manifest["backup"]]
        paths = [row["path"].replace(b"/", b"\0") for row, _ in rows]
        assert paths == sorted(set(paths))
        assert paths[0] == b""
        assert len(rows) == entry["names"]


def test_every_field_is_where_the_document_says(tmp_path: Path) -> None:
    """Kinds, links, modes, times and attributes of a real folder, and a stream beside it, are read as the document says."""
    folder = tmp_path / "source"
    (folder / "d").mkdir(parents=True)
    (folder / "d" / "file").write_bytes(b"content")
    (folder / "d" / "file").chmod(0o4711)
    (folder / "e").hardlink_to(folder / "d" / "file")
    (folder / "s").symlink_to("../outside")
    url = str(tmp_path / "repository")
    init_repository(url, passphrase=PASSPHRASE, chunk_size=16 * KiB)
    data = random.Random(1).randbytes(2 * MiB)
    with (
        open_repository(url, passphrase=PASSPHRASE, cache_directory=tmp_path / "cache") as repository,
        LocalFileTree(folder) as source,
        BackupSession(repository, new_backup_id()) as session,
    ):
        layer, _ = session.write_stream("layer", io.BytesIO(data))
        publish(session, repository, session.write_file_tree("data", source, None).entry)
        records = list(source.records())
    reader = IndependentReader(Path(url), PASSPHRASE)
    (manifest,) = reader.backups()
    rows = [row for row, _ in tree(reader, manifest["trees"][0])]
    assert [row["kind"] for row in rows] == ["directory", "directory", "file", "hardlink", "symlink"]
    for row, record in zip(rows, records, strict=True):
        if record.kind is FileKind.HARDLINK:
            assert (row["path"], row["target"]) == (b"e", b"d/file")
            continue
        for name, value in row.items():
            if name != "runs":
                assert value == getattr(record, name), name
    assert stream(reader, {"root": layer.root, "size": layer.size}) == data
