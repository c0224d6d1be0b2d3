"""Where passphrases come from: a file, the environment, or a hidden prompt. Never the command line, which everybody can see."""

import getpass
import os
import stat
import sys
from collections.abc import MutableMapping
from pathlib import Path

from lab_backup.cli.printing import tell
from lab_backup.errors import AccessDeniedError, UsageError

VARIABLE = "LAB_BACKUP_PASSPHRASE"
NEW_VARIABLE = "LAB_BACKUP_NEW_PASSPHRASE"
MAX_LENGTH = 64 * 1024  # bytes of a file's first line; more is no passphrase but a mistaken file name


def read_passphrase(
    file: Path | None,
    *,
    variable: str = VARIABLE,
    option: str = "--passphrase-file",
    prompt: str = "Passphrase",
    confirm: bool = False,
    environment: MutableMapping[str, str] = os.environ,
) -> str:
    """Return the passphrase: the first line of `file`, else `variable`, else what the user types (twice with `confirm`).

    The variable is removed from the environment, so that no program that we start inherits it.
    Raises UsageError where there is none to be had.
    """
    given = environment.pop(variable, "")
    if file is not None:
        return _from_file(file)
    if given:
        return _checked(given, f"in {variable}")
    if sys.stdin.isatty():
        return _ask(prompt, confirm=confirm)
    raise UsageError(
        "a passphrase is needed, and there is no terminal to ask for it",
        hint=f"use {option} FILE, or set {variable}",
    )


def _from_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            line = file.readline(MAX_LENGTH + 1)
    except PermissionError as error:
        raise AccessDeniedError(f"the passphrase file {path} may not be read by this user") from error
    except OSError as error:
        raise UsageError(f"the passphrase file {path} cannot be read: {error.strerror}") from error
    if len(line) > MAX_LENGTH:
        raise UsageError(f"the first line of {path} is too long for a passphrase", hint="was another file meant?")
    if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
        tell("warning", f"the passphrase file {path} is open to other users; close it: chmod 600 {path}")
    return _checked(os.fsdecode(line.rstrip(b"\r\n")), f"on the first line of {path}")


def _ask(prompt: str, *, confirm: bool) -> str:
    try:
        answer = getpass.getpass(f"{prompt}: ")
        if confirm and getpass.getpass("Once more: ") != answer:
            raise UsageError("the two passphrases differ", hint="nothing was changed; try again")
    except EOFError as error:
        sys.stderr.write("\n")
        raise UsageError("no passphrase was given") from error
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        raise
    return _checked(answer, "that was typed")


def _checked(passphrase: str, where: str) -> str:
    if not passphrase:
        raise UsageError(f"the passphrase {where} is empty")
    try:
        passphrase.encode()
    except UnicodeEncodeError:
        # `from None`: the original error quotes a part of the passphrase.
        raise UsageError(f"the passphrase {where} is not valid UTF-8") from None
    return passphrase
