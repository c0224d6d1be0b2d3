"""A set of ids on disk with the best place of each, against a dictionary."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.repository import live_set
from lab_backup.repository.live_set import LiveSet, Place, remove_leftovers


@given(
    added=st.lists(st.integers(0, 20)),
    offers=st.lists(st.tuples(st.integers(0, 25), st.integers(0, 2), st.integers(0, 5), st.integers(0, 99))),
)
def test_against_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, added: list[int], offers: list[tuple[int, int, int, int]]
) -> None:
    """An id keeps the smallest place that was offered; ids that are not in the set get none; however often it is written down."""
    model: dict[bytes, Place | None] = {}
    with pytest.MonkeyPatch.context() as patch, LiveSet(tmp_path_factory.mktemp("live")) as live:
        patch.setattr(live_set, "CHANGES", 3)
        for number in added:
            assert live.add(bytes([number]) * 32) == (bytes([number]) * 32 in model)
            model[bytes([number]) * 32] = None
        for number, rank, pack, stored in offers:
            name, place = bytes([number]) * 32, Place(rank, bytes([pack]) * 16, stored)
            live.offer(name, place)
            if name in model:
                model[name] = min(place, model[name] or place)
        assert dict(live.places()) == model
        assert len(live) == len(model)
        assert all((bytes([number]) * 32 in live) == (bytes([number]) * 32 in model) for number in range(26))
        assert all(live.place(name) == place for name, place in model.items())
        assert live.place(b"?" * 32) is None


def test_leaves_nothing_behind(tmp_path: Path) -> None:
    """The folder goes with the set; that of a killed process goes after a day, a younger one and other folders stay."""
    with LiveSet(tmp_path) as live:
        live.add(b"x" * 32)
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
    for name, age in (("live-old", 2 * 86400), ("live-young", 3600), ("other-old", 2 * 86400)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"live-young", "other-old"}
