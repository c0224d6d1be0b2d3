"""Marks: of all that was ever said about a backup, the last word of each kind holds."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.repository.errors import DamagedError
from lab_backup.repository.marks import Mark, MarkValue, State, StoredMark, Verification, decode, fold, new_path

BACKUP = "00112233445566778899aabbccddeeff"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def stored(path: str, kind: str, value: MarkValue, minute: int = 0) -> StoredMark:
    """Return a mark as the storage has it."""
    mark = msgspec.convert(
        {"backup": BACKUP, "kind": kind, "value": msgspec.to_builtins(value), "time": "t"}, type=Mark
    )
    return StoredMark(path=path, mark=mark, modified=NOON + timedelta(minutes=minute))


@given(
    statements=st.lists(st.tuples(st.sampled_from(["deleted", "protected", "archived"]), st.booleans()), max_size=12),
    data=st.data(),
)
def test_last_word_holds(statements: list[tuple[str, bool]], data: st.DataObject) -> None:
    """Whatever order a listing has, the newest mark of each kind decides, and deletion dates from its own mark."""
    marks: list[StoredMark] = []
    model: dict[str, tuple[bool, int]] = {}
    for minute, (kind, value) in enumerate(statements):
        marks.append(stored(new_path(BACKUP, marks), kind, value, minute))
        model[kind] = (value, minute)
    state = fold(data.draw(st.permutations(marks)))
    assert state.protected == model.get("protected", (False, 0))[0]
    assert state.archived == model.get("archived", (False, 0))[0]
    deleted, minute = model.get("deleted", (False, 0))
    assert state.deleted == (NOON + timedelta(minutes=minute) if deleted else None)


def test_simultaneous_marks() -> None:
    """Of two marks with one number the greater name holds, for every reader alike."""
    first, second = stored("marks/x/00000001-aa", "protected", True), stored("marks/x/00000001-bb", "protected", False)
    assert not fold([first, second]).protected
    assert not fold([second, first]).protected


def test_values() -> None:
    """Tags and verifications come back; a value of the wrong type for its kind says nothing."""
    outcome = Verification(time="t", level="sample", ok=False, sample=0.05)
    state = fold([stored("marks/x/1-a", "tags", ["a", "b"]), stored("marks/x/2-a", "verified", outcome)])
    assert state == State(tags=("a", "b"), verified=outcome)
    odd = [
        stored("marks/x/1-a", "tags", True),
        stored("marks/x/2-a", "verified", ["x"]),
        stored("marks/x/3-a", "deleted", ["x"]),
    ]
    assert fold(odd) == State()
    assert fold([]) == State()


def test_new_path_overrules() -> None:
    """A new mark's name is greater than all there are, also than odd ones."""
    marks = [stored("marks/x/0000000f-ff", "tags", []), stored("marks/x/zz-1", "tags", [])]
    assert new_path("x", marks).startswith("marks/x/00000010-")
    assert new_path("x", []).startswith("marks/x/00000001-")
    assert new_path("x", []) != new_path("x", [])


PATH = f"marks/{BACKUP}/00000001-0123456789abcdef"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"backup": "00112233445566778899aabbccddeeff", "kind": "boss", "value": true, "time": ""}',
        b'{"backup": "00112233445566778899aabbccddeeff", "kind": "deleted", "value": 1, "time": ""}',
        b'{"backup": "10112233445566778899aabbccddeeff", "kind": "deleted", "value": true, "time": ""}',
    ],
)
def test_damaged(payload: bytes) -> None:
    """Nonsense, unknown kinds, and marks that speak of another backup are refused."""
    with pytest.raises(DamagedError):
        decode(payload, PATH)


def test_round_trip() -> None:
    """A mark comes back as it was made."""
    mark = Mark(
        backup=BACKUP, kind="verified", value=Verification(time="t", level="full", ok=True), time="t", by="me@here"
    )
    assert decode(msgspec.json.encode(mark), PATH) == mark
