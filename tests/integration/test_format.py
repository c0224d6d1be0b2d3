"""The format document is true: a reader written from it alone reads what the product writes."""

import random
from pathlib import Path

import pytest

from lab_backup.operations.backup import backup_image
from lab_backup.operations.lifecycle import delete, protect
from lab_backup.operations.repositories import init_repository, open_repository
from lab_backup.units import KiB, MiB
from support.independent_reader import IndependentReader

PASSPHRASE = "an honest passphrase"


@pytest.mark.parametrize("lost", ["config", None])
@pytest.mark.parametrize("compression", ["zstd:3", "gzip", "none"])
def test_the_document_suffices_to_restore(tmp_path: Path, compression: str, lost: str | None) -> None:
    """Two backups of a sparse disk of odd size, with half-compressible data, come back from docs/format alone."""
    url = str(tmp_path / "repository")
    init_repository(url, passphrase=PASSPHRASE, chunk_size=64 * KiB, compression=compression)
    image = tmp_path / "disk.raw"
    chooser = random.Random(7)
    size = 9 * MiB + 12345
    contents = []
    with open_repository(url, passphrase=PASSPHRASE, cache_directory=tmp_path / "cache") as repository:
        disk = bytearray(size)
        ids = []
        for _ in range(2):
            for _ in range(40):
                at = chooser.randrange(size - 70_000)
                half = chooser.randrange(35_000)
                disk[at : at + half] = chooser.randbytes(half)
                disk[at + half : at + 2 * half] = b"text " * (half // 5) + bytes(half % 5)
            image.write_bytes(disk)
            contents.append(bytes(disk))
            ids.append(backup_image(repository, image, name="disk").backup)
        protect(repository, ids[0])
        delete(repository, ids[1])
    if lost:
        (Path(url) / lost).unlink()
    reader = IndependentReader(Path(url), PASSPHRASE)
    found = {manifest["backup"]: manifest for manifest in reader.backups()}
    assert set(found) == set(ids)
    for identity, content in zip(ids, contents, strict=True):
        assert reader.content(found[identity]["disks"][0]) == content
    assert reader.marks(ids[0]) == {"protected": True}
    assert reader.marks(ids[1]) == {"deleted": True}
