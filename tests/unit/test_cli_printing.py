"""Printing: nothing from elsewhere reaches the terminal raw, and JSON is one line."""

import json
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.cli import printing


@given(st.text(st.characters()))
def test_printable_text_has_no_control_characters(text: str) -> None:
    """Whatever goes in, no control or surrogate character comes out but the line feed."""
    shown = printing.printable(text)
    assert not [char for char in shown if char != "\n" and unicodedata.category(char) in {"Cc", "Cs"}]


@given(st.text("abc äöü 日本 -_/.:\n"))
def test_ordinary_text_is_untouched(text: str) -> None:
    """Letters of all scripts, spaces and line feeds stay as they are."""
    assert printing.printable(text) == text


@dataclass
class Sample:
    """Something to print."""

    name: str
    when: datetime


def test_json_is_one_line_with_utc_times(capsys: pytest.CaptureFixture[str]) -> None:
    """Times end in Z, and a file name that is no valid UTF-8 does not break the output."""
    printing.show(Sample("f\udcffx", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)), lambda _: "never", as_json=True)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == {"name": "f\udcffx", "when": "2026-01-02T03:04:05Z"}


def test_a_reader_that_left_is_no_failure_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed pipe at stdout is told apart from every other broken pipe."""

    class Closed:
        def write(self, _text: str) -> None:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(printing.OutputClosedError):
        printing.show({}, lambda _: "text", as_json=False)
