"""Passphrases: where they come from, and that they go nowhere else."""

import getpass
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lab_backup.cli.passphrase import MAX_LENGTH, read_passphrase
from lab_backup.errors import AccessDeniedError, UsageError

Terminal = Callable[..., None]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Return a function that puts a person at the terminal who types the given answers."""

    def sit(*answers: str) -> None:
        waiting = list(answers)

        def ask(_prompt: str) -> str:
            if not waiting:
                raise EOFError
            return waiting.pop(0)

        stdin = io.StringIO()
        monkeypatch.setattr(stdin, "isatty", lambda: True)
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr(getpass, "getpass", ask)

    return sit


@pytest.fixture
def passphrase_file(tmp_path: Path) -> Path:
    """Return a file as users make it, readable by them alone."""
    path = tmp_path / "passphrase"
    path.write_bytes("corréct horse \nsecond line\n".encode())
    path.chmod(0o600)
    return path


def test_the_file_comes_first(passphrase_file: Path) -> None:
    """The first line of the file counts, with its spaces, even where the variable is set."""
    environment = {"LAB_BACKUP_PASSPHRASE": "other"}
    assert read_passphrase(passphrase_file, environment=environment) == "corréct horse "
    assert environment == {}


def test_windows_line_ends_are_no_part_of_it(passphrase_file: Path) -> None:
    """A file that was written on Windows holds the same passphrase."""
    passphrase_file.write_bytes(b"secret\r\nmore")
    assert read_passphrase(passphrase_file, environment={}) == "secret"


def test_the_variable_is_taken_out_of_the_environment() -> None:
    """Programs that are started later do not inherit the passphrase."""
    environment = {"LAB_BACKUP_PASSPHRASE": "secret", "PATH": "/bin"}
    assert read_passphrase(None, environment=environment) == "secret"
    assert environment == {"PATH": "/bin"}


def test_a_file_open_to_others_is_told(passphrase_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that others may read is used, with a warning that does not show what is in it."""
    passphrase_file.chmod(0o640)
    assert read_passphrase(passphrase_file, environment={}) == "corréct horse "
    err = capsys.readouterr().err
    assert f"chmod 600 {passphrase_file}" in err
    assert "horse" not in err


def test_a_closed_file_and_a_pipe_need_no_warning(passphrase_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a private file nor a pipe such as <(pass show …) is complained about."""
    read_passphrase(passphrase_file, environment={})
    receive, send = os.pipe()
    os.write(send, b"piped\n")
    os.close(send)
    try:
        assert read_passphrase(Path(f"/proc/self/fd/{receive}"), environment={}) == "piped"
    finally:
        os.close(receive)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"", "empty"), (b"\nsecond", "empty"), (b"\xff\xfe\n", "UTF-8"), (b"x" * (MAX_LENGTH + 1), "too long")],
)
def test_unusable_files_are_refused(passphrase_file: Path, content: bytes, complaint: str) -> None:
    """An empty, endless or binary file is a mistake and not a passphrase."""
    passphrase_file.write_bytes(content)
    with pytest.raises(UsageError, match=complaint) as caught:
        read_passphrase(passphrase_file, environment={})
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_missing_and_forbidden_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the file and says why it cannot be read."""
    with pytest.raises(UsageError, match="nofile cannot be read: No such file"):
        read_passphrase(tmp_path / "nofile", environment={})

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AccessDeniedError, match="may not be read"):
        read_passphrase(tmp_path / "any", environment={})


def test_typing_it_twice_must_agree(terminal: Terminal) -> None:
    """Where a repository is made, a typing error is noticed."""
    terminal("secret", "secret")
    assert read_passphrase(None, confirm=True, environment={}) == "secret"
    terminal("secret", "secert")
    with pytest.raises(UsageError, match="differ"):
        read_passphrase(None, confirm=True, environment={})


def test_one_question_is_enough_to_open(terminal: Terminal) -> None:
    """To open a repository the passphrase is typed once."""
    terminal("secret")
    assert read_passphrase(None, environment={}) == "secret"


def test_no_answer_is_an_error(terminal: Terminal) -> None:
    """Ctrl-D and an empty answer are refused."""
    terminal()
    with pytest.raises(UsageError, match="no passphrase"):
        read_passphrase(None, environment={})
    terminal("")
    with pytest.raises(UsageError, match="empty"):
        read_passphrase(None, environment={})


def test_without_a_terminal_the_ways_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cron job without a passphrase ends at once, and its log says what is missing."""
    monkeypatch.setattr("sys.stdin", io.StringIO("not asked\n"))
    with pytest.raises(UsageError) as caught:
        read_passphrase(None, environment={"LAB_BACKUP_PASSPHRASE": ""})
    assert caught.value.hint == "use --passphrase-file FILE, or set LAB_BACKUP_PASSPHRASE"
