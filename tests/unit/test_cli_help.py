"""The help: complete for every command."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from lab_backup.cli.main import ORDER
from lab_backup.program import app


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command with the words that call it."""
    for name, command in group.commands.items():
        words = (*path, name)
        if hasattr(command, "commands"):
            yield from commands(command, words)
        else:
            yield words, command


ALL = dict(commands(typer.main.get_command(app)))
PROMISED = {
    "repo init", "repo info", "repo keys list", "repo keys add", "repo keys remove", "repo keys rotate", "repo recovery-sheet", "repo immutable",
    "backup vm", "backup image", "backup container", "backup volume", "backup pod", "restore pod", "restore container", "restore volume", "restore files", "files", "list", "show", "restore vm", "restore image", "verify", "delete", "undelete",
    "protect", "unprotect", "prune", "gc", "replicate", "export", "storage test", "checkpoints list", "checkpoints remove", "demo",
    "up", "api", "worker", "beat", "migrate", "reset-password", "verify-audit", "rotate-master-key", "config export", "config diff", "config apply",
}  # fmt: skip

SERVERS = {"api", "worker", "beat"}  # they print nothing


def test_all_promised_commands_are_there() -> None:
    """Neither a command is missing nor one undocumented."""
    assert {" ".join(words) for words in ALL} == PROMISED
    assert {words[0] for words in ALL} == set(ORDER)


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_has_a_sentence_and_examples(words: tuple[str, ...]) -> None:
    """Each command explains itself and ends with examples that begin with its own words."""
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    assert f"    lab-backup {' '.join(words)}" in result.stdout.partition("Examples:")[2]
    assert ALL[words].help


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_each_command_has_json_and_explains_its_options(words: tuple[str, ...]) -> None:
    """Every command can print JSON, and no option or argument is left without a word."""
    options = {option for parameter in ALL[words].params for option in parameter.opts}
    assert "--json" in options or words[0] in SERVERS
    assert [parameter.name for parameter in ALL[words].params if not parameter.help] == []


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_no_command_takes_a_passphrase_as_an_argument(words: tuple[str, ...]) -> None:
    """Arguments are seen by everybody on the machine: only files with passphrases can be named."""
    options = {option for parameter in ALL[words].params for option in parameter.opts if "passphrase" in option}
    assert options <= {"--passphrase-file", "--new-passphrase-file", "--from-passphrase-file"}
