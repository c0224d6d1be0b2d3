"""A disk that is really full."""

from pathlib import Path

import pytest

from lab_backup.units import MiB
from support.small_disk import FILE_SYSTEMS, FileSystem, run_on_small_disk


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_a_full_disk_stops_backups_and_nothing_else(tmp_path: Path, kind: FileSystem) -> None:
    """A backup that does not fit fails and leaves nothing; deleting and collecting work without a free byte; then backups succeed again."""
    roomy = tmp_path / "roomy"
    roomy.mkdir()
    run_on_small_disk(Path(__file__).with_name("engine_on_full_disk.py"), tmp_path, kind, 32 * MiB, str(roomy))
