"""What a user is told when something goes wrong."""

import json

import pytest

from lab_backup.cli import failures
from lab_backup.errors import NotFoundError, UsageError


def raised(error: BaseException) -> BaseException:
    """Return `error` with a traceback."""
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001  also KeyboardInterrupt
        return caught


def test_an_error_is_a_sentence_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr stand what happened and what to do; stdout stays empty without --json."""
    code = failures.report(NotFoundError("there is no VM web", hint="see virsh list"), as_json=False, environment={})
    out, err = capsys.readouterr()
    assert (code, out, err) == (4, "", "error: there is no VM web\nhint: see virsh list\n")


def test_json_has_the_error_as_its_only_object(capsys: pytest.CaptureFixture[str]) -> None:
    """With --json a script finds code, kind, message and hint on stdout, and a person the same text on stderr."""
    code = failures.report(UsageError("no"), as_json=True, environment={})
    out, err = capsys.readouterr()
    assert code == 2
    assert json.loads(out) == {"error": {"code": 2, "kind": "usage", "message": "no", "hint": None}}
    assert out.count("\n") == 1
    assert err == "error: no\n"


def test_unforeseen_text_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody knows what the text of an unforeseen exception holds: only its class and place are told."""
    code = failures.report(raised(ValueError("bad key: s3cret")), as_json=True, environment={})
    out, err = capsys.readouterr()
    assert code == 1
    assert "s3cret" not in out + err
    assert "Traceback" not in err
    assert "ValueError at test_cli_failures.py:" in err
    assert "LAB_BACKUP_DEBUG=1" in err


def test_debugging_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """With LAB_BACKUP_DEBUG the traceback is on stderr, and stdout still holds one object."""
    failures.report(raised(ValueError("why")), as_json=True, environment={"LAB_BACKUP_DEBUG": "1"})
    out, err = capsys.readouterr()
    assert "Traceback (most recent call last)" in err
    assert "ValueError: why" in err
    assert json.loads(out)["error"]["kind"] == "unexpected"


def test_errors_of_the_system_name_their_file() -> None:
    """An OSError that no layer translated still says what and where, without a Python class name."""
    failure = failures.describe(PermissionError(13, "Permission denied", "/var/cache/x"))
    assert (failure.message, failure.verdict.code) == ("/var/cache/x: Permission denied", 1)


def test_terminal_codes_in_names_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """A VM whose name holds escape sequences cannot command the user's terminal."""
    failures.report(NotFoundError("there is no VM \x1b]0;owned\x07"), as_json=True, environment={})
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "\\x1b]0;owned\\x07" in err
