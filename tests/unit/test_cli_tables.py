"""Tables for people: the quick way of drawing them looks as the one that breaks lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.cli import tables

CELLS = st.text(alphabet="ab7 -/é日本", max_size=8).map(str.strip)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=5))
def test_rows_that_fit_look_as_those_that_have_to_be_broken(rows: list[tuple[str, str, str]]) -> None:
    """A table is the same whether its lines are laid out at once or by the library that could break them."""
    quick = tables.table(["ID", "SIZE", "NAME"], rows, right=(1,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_fits", lambda *_: False)
        assert tables.table(["ID", "SIZE", "NAME"], rows, right=(1,)) == quick


def test_a_tab_is_not_counted_as_one_column() -> None:
    """What is not printable goes the careful way, so that columns stay below each other."""
    lines = tables.table(["A", "B"], [("a\tb", "x"), ("long enough", "y")]).splitlines()
    assert [line.rindex(end) for line, end in zip(lines[1:], "xy", strict=True)] == [lines[0].index("B")] * 2
