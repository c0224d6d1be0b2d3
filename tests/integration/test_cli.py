"""The real program on real repositories of images: what a new user does, right and wrong."""

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer.main

from lab_backup.operations.backup import run_backup
from lab_backup.operations.repositories import open_repository
from lab_backup.program import app
from lab_backup.sources.image.source import open_image
from lab_backup.units import KiB, MiB
from support.program import PROGRAM, SECONDS, Ended, Program

DOCUMENT = Path(__file__).parents[2] / "docs" / "cli.md"


@pytest.fixture
def lab(tmp_path: Path) -> Program:
    """Return the program with a new encrypted repository, whose passphrase is in the environment."""
    program = Program(tmp_path, LAB_BACKUP_REPO=str(tmp_path / "repository"), LAB_BACKUP_PASSPHRASE="correct horse")
    program.ok("repo", "init")
    return program


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return a raw image of 6 MiB: data, a hole, data."""
    path = tmp_path / "data.raw"
    with path.open("wb") as file:
        file.write(os.urandom(MiB + 17))
        file.seek(5 * MiB)
        file.write(os.urandom(MiB))
    return path


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def error(ended: Ended) -> str:
    """Return what a failed command said, after a look that it said it as promised and without a traceback."""
    assert "Traceback" not in ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.stderr
    return ended.stderr


# --- the whole way ---


def test_an_image_goes_there_and_back(lab: Program, image: Path, tmp_path: Path) -> None:
    """Back up, list, show, verify, restore to raw and to qcow2, export: every byte is as it was."""
    made = lab.ok("backup", "image", image, "--name", "data")
    assert (made["kind"], made["bytes_total"], made["warnings"]) == ("full", 6 * MiB, [])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", made["time"])
    again = lab.ok("backup", "image", image, "--name", "data")
    assert again["bytes_stored"] < made["bytes_stored"] / 10
    listed = lab.ok("list")["backups"]
    assert [item["backup"] for item in listed] == [made["backup"], again["backup"]]
    assert lab.ok("show", "latest:data")["backup"] == again["backup"]
    assert lab.ok("show", made["backup"][:8]) == listed[0]
    verified = lab.ok("verify", "--read-data")
    assert (verified["backups"], verified["corrupt"], verified["missing"]) == (2, 0, 0)
    lab.ok("restore", "image", "latest:image/data", "--to", "back.raw")
    assert digest(tmp_path / "back.raw") == digest(image)
    lab.ok("restore", "image", made["backup"], "--to", "back.qcow2")
    exported = lab.ok("export", made["backup"], "--to", "out.tar")
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert archive.getnames() == exported["members"]
        member = archive.extractfile("disk.qcow2")
        assert member is not None
        (tmp_path / "disk.qcow2").write_bytes(member.read())
    for copy in ("back.qcow2", "disk.qcow2"):
        compare = ["/usr/bin/qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(image), str(tmp_path / copy)]
        subprocess.run(compare, check=True, capture_output=True, timeout=SECONDS)


def test_people_get_sentences_and_tables(lab: Program, image: Path) -> None:
    """Without --json the same commands speak to people, on stdout, with progress on stderr alone."""
    made = lab("backup", "image", image, "--name", "data")
    assert re.match(r"Backup [0-9a-f]{12} of image/data: full, nothing was running\n  6\.0 MiB in 1 disk", made.stdout)
    assert made.stderr == "backing up data: 6.0 MiB\n"
    assert lab("backup", "image", image, "--name", "data", "--quiet").stderr == ""
    assert lab("list").stdout.splitlines()[1].split()[3] == "image/data"
    assert "Nothing is missing or damaged." in lab("verify").stdout
    assert "Encryption    aes-256-gcm" in lab("repo", "info").stdout


def test_deletion_and_its_undoing(lab: Program, image: Path) -> None:
    """Deleted, taken back, protected, refused, freed, gone: with the promised exit status each time."""
    backup = lab.ok("backup", "image", image)["backup"]
    assert lab.ok("delete", backup)["deleted"] is not None
    assert error(lab("protect", backup)).endswith("lab-backup undelete\n")
    assert lab.ok("undelete", backup)["deleted"] is None
    lab.ok("protect", backup)
    refused = lab("delete", backup, "--now", "--json")
    assert (refused.code, refused.object["error"]["kind"]) == (1, "protected")
    lab.ok("unprotect", backup)
    lab.ok("delete", backup, "--now")
    assert lab("show", backup).code == 4
    assert lab("gc", "--grace", "0").code == 2
    planned = lab.ok("gc", "--grace", "0", "--exclusive", "--dry-run")
    collected = lab.ok("gc", "--grace", "0", "--exclusive")
    assert planned["bytes_removed"] == collected["bytes_removed"] > 2 * MiB
    assert lab("list").stdout == "There are no backups.\n"


def test_keys_and_the_recovery_sheet(lab: Program, tmp_path: Path) -> None:
    """A second passphrase opens the repository, the first can go; the printed recovery key opens it always."""
    sheet = lab.ok("repo", "recovery-sheet")["recovery_sheet"]
    first = lab.ok("repo", "keys", "list")["keys"][0]["id"]
    assert error(lab("repo", "keys", "remove", first)).startswith("error: this is the last ")
    second = lab.ok("repo", "keys", "add", "--label", "anna", LAB_BACKUP_NEW_PASSPHRASE="battery staple")
    assert second["label"] == "anna"
    lab.ok("repo", "keys", "remove", first)
    assert lab("list").code == 5
    lab.ok("list", LAB_BACKUP_PASSPHRASE="battery staple")
    block = sheet.partition("LABKEY1-")[2].partition("\n\n")[0]
    (tmp_path / "recovery").write_text("LABKEY1-" + " ".join(block.split()) + "\n")
    (tmp_path / "recovery").chmod(0o600)
    lab.ok("list", "--passphrase-file", "recovery")


def test_a_key_file_opens_and_is_replaced(lab: Program, tmp_path: Path) -> None:
    """A key file is made for its owner alone and opens without a passphrase; rotating takes the old one away, and never the last key."""
    first = lab.ok("repo", "keys", "list")["keys"][0]["id"]
    made = lab.ok("repo", "keys", "add", "--new-key-file", "host.key", "--label", "host")
    assert ((tmp_path / "host.key").stat().st_mode & 0o777, len((tmp_path / "host.key").read_bytes())) == (0o600, 64)
    by_file: dict[str, Any] = {"LAB_BACKUP_PASSPHRASE": "", "LAB_BACKUP_KEY_FILE": "host.key"}
    lab.ok("list", **by_file)
    lab.ok("repo", "keys", "remove", first, **by_file)
    assert error(lab("repo", "keys", "remove", made["id"], **by_file)).startswith("error: this is the last ")
    again = lab.ok("repo", "keys", "rotate", made["id"][:6], "--new-key-file", "next.key", **by_file)
    assert (again["label"], again["kind"]) == ("host", "key-file")
    refused = lab("list", **by_file)
    assert (refused.code, "the key file does not open" in refused.stderr) == (5, True)
    by_file["LAB_BACKUP_KEY_FILE"] = "next.key"
    assert [key["id"] for key in lab.ok("repo", "keys", "list", **by_file)["keys"]] == [again["id"]]
    lab.ok("repo", "keys", "add", "--kdf", "scrypt", LAB_BACKUP_NEW_PASSPHRASE="battery staple", **by_file)
    lab.ok("list", LAB_BACKUP_PASSPHRASE="battery staple")


def test_a_repository_like_another_one(lab: Program, tmp_path: Path) -> None:
    """It takes over the chunk size and what makes ids equal, has a key of its own, and is never without encryption beside an encrypted one."""
    words = ("repo", "init", "second", "--like", "repository", "--chunk-size", "64KiB")
    asked: dict[str, Any] = {
        "LAB_BACKUP_FROM_PASSPHRASE": "correct horse",
        "LAB_BACKUP_PASSPHRASE": "another",
        "LAB_BACKUP_REPO": "",
    }
    assert error(lab(*words, "--no-encryption", **asked)).startswith("error: a repository without encryption")
    assert not (tmp_path / "second").exists()
    made = lab.ok(*words, **asked)
    assert made["chunk_size"] == lab.ok("repo", "info")["chunk_size"]
    assert lab("list", "--repo", "second").code == 5
    lab.ok("list", "--repo", "second", LAB_BACKUP_PASSPHRASE="another")


def test_a_repository_without_encryption_asks_nothing(tmp_path: Path, image: Path) -> None:
    """Neither a file nor a variable nor a terminal is needed."""
    lab = Program(tmp_path, LAB_BACKUP_REPO=str(tmp_path / "open"))
    lab.ok("repo", "init", "--no-encryption")
    lab.ok("backup", "image", image)
    assert len(lab.ok("list")["backups"]) == 1
    refused = lab("list", LAB_BACKUP_PASSPHRASE="correct horse")
    assert refused.code == 5
    assert "not encrypted" in refused.stderr


# --- what goes wrong ---


@pytest.fixture(scope="module")
def empty_lab(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Return the program with a repository that stays empty, for commands that must not change it."""
    directory = tmp_path_factory.mktemp("empty")
    program = Program(directory, LAB_BACKUP_REPO=str(directory / "repository"), LAB_BACKUP_PASSPHRASE="correct horse")
    program.ok("repo", "init")
    return program


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("list", "--repo", "nowhere"), 4, "nowhere"),
        (("list", "--repo", "/proc"), 4, "is not a repository"),
        (("list", "--repo", "ftp://bucket/x"), 2, "/srv/backups"),
        (("list", "--repo", ""), 2, "empty"),
        (("show", "xyz"), 2, "is not a backup"),
        (("show", "0123456789ab"), 4, "there is no backup"),
        (("show", "latest:vm/web"), 4, "there is no backup of vm/web"),
        (("backup", "image", "none.raw"), 4, "none.raw"),
        (("backup", "image", "."), 2, "directory"),
        (("backup", "vm", "web", "--connect", "test:///default"), 4, "VMs there: test"),
        (("backup", "vm", "web", "--connect", "qemu+unix:///session?socket=/none"), 1, "libvirtd"),
        (("checkpoints", "list", "web", "--connect", "test:///default"), 4, "there is no VM 'web'"),
        (("repo", "init"), 8, "is a repository already"),
        (("repo", "init", "."), 2, "is not empty"),
        (("repo", "init", "a/b/c"), 4, "make the folder first"),
        (("repo", "init", "new", "--chunk-size", "100KiB"), 2, "power of two"),
        (("repo", "init", "new", "--compression", "lzma"), 2, "zstd:LEVEL"),
        (("verify", "--sample", "0"), 2, "such as 5%"),
        (("gc", "--grace", "soon"), 2, "24h"),
        (("list", "--passphrase-file", "none"), 2, "cannot be read: No such file"),
        (("backup", "vm"), 2, "lab-backup backup vm --help"),
        (("lsit",), 2, "Did you mean 'list'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_input_is_explained(empty_lab: Program, arguments: tuple[str, ...], code: int, words: str) -> None:
    """Each mistake of a new user ends with its status, a sentence and what to do, also as one object, and makes nothing."""
    ended = empty_lab(*arguments, "--json")
    assert ended.code == code, ended.stderr
    assert words in error(ended)
    told = ended.object["error"]
    assert told["code"] == code
    assert ended.stderr.startswith(f"error: {told['message']}\n")
    assert {path.name for path in empty_lab.directory.iterdir()} <= {"repository", "cache"}


def test_targets_that_exist_stay_as_they_are(lab: Program, image: Path, tmp_path: Path) -> None:
    """Neither a restore nor an export writes over a file; the status is 8."""
    backup = lab.ok("backup", "image", image)["backup"]
    (tmp_path / "taken").write_text("mine")
    assert lab("restore", "image", backup, "--to", "taken").code == 8
    assert lab("export", backup, "--to", "taken").code == 8
    assert (tmp_path / "taken").read_text() == "mine"


def test_the_wrong_passphrase_is_told_apart(lab: Program, tmp_path: Path) -> None:
    """A wrong passphrase is status 5, none at all is status 2, and neither is ever shown."""
    wrong = lab("list", LAB_BACKUP_PASSPHRASE="battery staple")
    assert wrong.code == 5
    assert "battery" not in error(wrong)
    (tmp_path / "passphrase").write_text("correct horse\n")
    (tmp_path / "passphrase").chmod(0o644)
    opened = lab("list", "--passphrase-file", "passphrase", LAB_BACKUP_PASSPHRASE="")
    assert (opened.code, "open to other users" in opened.stderr) == (0, True)
    nothing = lab("list", LAB_BACKUP_PASSPHRASE="", stdin="correct horse\n")
    assert (nothing.code, "--passphrase-file" in error(nothing)) == (2, True)


def test_an_ambiguous_id_lists_the_candidates(lab: Program, image: Path) -> None:
    """A beginning that fits two backups is status 2 and names both."""
    ids = [f"abcd{number:028x}" for number in (1, 2)]
    with open_repository(
        lab.environment["LAB_BACKUP_REPO"], passphrase="correct horse", cache_directory=lab.directory / "cache"
    ) as repository:
        for backup_id in ids:
            run_backup(repository, open_image(image), latest=None, backup_id=backup_id)
    ended = lab("show", "abcd")
    assert ended.code == 2
    assert all(backup_id in error(ended) for backup_id in ids)


def test_closed_files_are_named(lab: Program, image: Path, tmp_path: Path) -> None:
    """Who may not read or write something learns what it is; the status is 1 and nothing is changed."""
    lab.ok("backup", "image", image)
    locked = tmp_path / "locked"
    locked.mkdir()
    image.chmod(0)
    locked.chmod(0)
    cases: tuple[tuple[tuple[str | Path, ...], str], ...] = (
        (("backup", "image", image), image.name),
        (("list", "--repo", locked), "locked"),
        (("repo", "init", locked / "x"), "locked"),
        (("restore", "image", f"latest:image/{image}", "--to", locked / "x"), "locked/x"),
        (("export", f"latest:image/{image}", "--to", locked / "x"), "locked/x"),
        (("list", "--passphrase-file", image), "may not be read"),
    )
    try:
        for arguments, words in cases:
            ended = lab(*arguments, unprivileged=True)
            assert ended.code == 1, (arguments, ended)
            assert words in error(ended)
        cached = lab("list", unprivileged=True, LAB_BACKUP_CACHE=str(locked))
        assert (cached.code, "set LAB_BACKUP_CACHE" in error(cached)) == (1, True)
    finally:
        locked.chmod(0o700)
    assert list(locked.iterdir()) == []
    assert len(lab.ok("list")["backups"]) == 1


def test_damage_is_found_named_and_never_restored(lab: Program, image: Path, tmp_path: Path) -> None:
    """A flipped bit in stored data: verify and restore end with 6, and no restored file is left."""
    backup = lab.ok("backup", "image", image)["backup"]
    pack = max((tmp_path / "repository" / "packs").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    found = lab("verify", "--read-data", "--json")
    assert (found.code, found.object["corrupt"]) == (6, 1)
    assert any(touch.startswith(f"{backup}/disk@") for touch in found.object["damage"][0]["touches"])
    assert "DAMAGED: 1 corrupt, 0 missing" in lab("verify", "--read-data").stdout
    assert re.search(r"  DAMAGED \d{4}-\d\d-\d\d$", lab("list").stdout.splitlines()[1])
    restored = lab("restore", "image", backup, "--to", "back.raw", "--json")
    assert (restored.code, restored.object["error"]["kind"]) == (6, "damaged")
    assert not (tmp_path / "back.raw").exists()


def test_a_newer_repository_is_refused(lab: Program, tmp_path: Path) -> None:
    """A repository of a version that is yet to come is left alone, with the advice to update."""
    for name in ("config", "config.copy"):
        config = tmp_path / "repository" / name
        config.chmod(0o600)
        config.write_text(json.dumps({**json.loads(config.read_text()), "version": 99}))
    ended = lab("list", "--json")
    assert (ended.code, ended.object["error"]["kind"]) == (1, "newer_version")
    assert "update" in ended.stderr


# --- signals, streams and terminals ---


@pytest.fixture
def slow(tmp_path: Path) -> Program:
    """Return the program with a repository that compresses so hard that a backup takes long enough to be interrupted."""
    program = Program(tmp_path, LAB_BACKUP_REPO=str(tmp_path / "slow"))
    program.ok("repo", "init", "--no-encryption", "--compression", "zstd:15")
    (tmp_path / "big.raw").write_bytes(os.urandom(32 * MiB).hex().encode())
    return program


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_cleanly(slow: Program, number: signal.Signals) -> None:
    """Ctrl-C, SIGTERM and a lost terminal end a backup with 130; nothing of it is seen, and the next one succeeds."""
    with slow.start(
        "backup", "image", "big.raw", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"backing up")
        time.sleep(0.3)  # in the middle of it
        process.send_signal(number)
        out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert json.loads(out)["error"]["kind"] == "interrupted"
    assert err.decode().endswith("error: interrupted\n")
    assert slow.ok("list")["backups"] == []
    assert slow.ok("verify")["corrupt"] == 0
    assert list((slow.directory / "slow" / "leases").glob("*")) == []


def test_a_running_backup_keeps_exclusive_collection_away(slow: Program) -> None:
    """While a backup runs, `gc --exclusive` ends with 7 and removes nothing."""
    with slow.start("backup", "image", "big.raw", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"backing up")
        try:
            ended = slow("gc", "--grace", "0", "--exclusive")
            assert process.poll() is None
        finally:
            process.terminate()
            process.communicate(timeout=SECONDS)
    assert ended.code == 7
    assert "a backup is running" in error(ended)


class Terminal:
    """A pseudo terminal with a person who answers questions."""

    def __init__(self, *answers: tuple[str, str]) -> None:
        """Type the second of each pair when the first was shown."""
        self._master, self.slave = os.openpty()
        self._answers = list(answers)
        self._shown = b""
        self._thread = threading.Thread(target=self._sit)
        self._thread.start()

    def _sit(self) -> None:
        with suppress(OSError):  # which is how a terminal ends
            while part := os.read(self._master, 64 * KiB):
                self._shown += part
                if self._answers and self._shown.endswith(self._answers[0][0].encode()):
                    os.write(self._master, self._answers.pop(0)[1].encode())

    def close(self) -> str:
        """Return all that was shown."""
        os.close(self.slave)
        self._thread.join(SECONDS)
        os.close(self._master)
        return self._shown.decode()


def on_terminal(program: Program, arguments: tuple[str, ...], *answers: tuple[str, str]) -> tuple[int, str, bytes]:
    """Run a command whose stdin and stderr are a terminal; return its status, what was shown, and its stdout."""
    terminal = Terminal(*answers)
    try:
        with program.start(*arguments, stdin=terminal.slave, stderr=terminal.slave, stdout=subprocess.PIPE) as process:
            out, _ = process.communicate(timeout=SECONDS)
    finally:
        shown = terminal.close()
    return process.returncode, shown, out


def test_a_person_is_asked_for_the_passphrase(tmp_path: Path) -> None:
    """Twice to make a repository, once to open it, and what is typed is not shown."""
    lab = Program(tmp_path, LAB_BACKUP_REPO=str(tmp_path / "repository"))
    typed, again = ("Passphrase: ", "correct horse\n"), ("Once more: ", "correct horse\n")
    code, shown, _ = on_terminal(lab, ("repo", "init"), typed, ("Once more: ", "corect horse\n"))
    assert (code, "differ" in shown) == (2, True)
    assert not (tmp_path / "repository").exists()
    code, shown, _ = on_terminal(lab, ("repo", "init"), typed, again)
    assert (code, "recovery sheet" in shown, "horse" in shown) == (0, True, False)
    code, shown, out = on_terminal(lab, ("list", "--json"), typed)
    assert (code, json.loads(out)["backups"], shown.count("Passphrase")) == (0, [], 1)


def test_a_terminal_shows_a_bar_and_stdout_only_the_object(slow: Program) -> None:
    """Rate and remaining time move on the terminal, while stdout has nothing but JSON."""
    code, shown, out = on_terminal(slow, ("backup", "image", "big.raw", "--json"))
    assert code == 0
    assert json.loads(out)["bytes_total"] == 64 * MiB
    assert "━" in shown
    assert re.search(r"% of 64\.0 MiB, [0-9.]+ .iB/s, [0-9.]+ s left", shown)


def test_stdout_that_nobody_can_read(lab: Program) -> None:
    """A full disk at stdout is a failure, a reader that left ends quietly, and a closed one harms nothing."""
    with Path("/dev/full").open("wb") as full:
        process = lab.start("list", "--json", stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (1, b"error: No space left on device\n")
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = lab.start("list", stdout=write_end, stderr=subprocess.PIPE)
    _, err = process.communicate(timeout=SECONDS)
    os.close(write_end)
    assert (process.returncode, err) == (1, b"")
    closed = ["/bin/sh", "-c", 'exec "$0" list >&-', str(PROGRAM)]
    done = subprocess.run(closed, env=lab.environment, capture_output=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


# --- the program as such ---


def test_help_loads_nothing_heavy() -> None:
    """`--help` does not wait for libvirt, cryptography, compression, tables or the engine."""
    heavy = ("libvirt", "cryptography", "rich", "zstandard", "lmdb", "blake3", "msgspec", "pydantic")
    code = (
        "import sys\nsys.argv[1:] = ['--help']\n"
        "from lab_backup.program import run\n"
        "try: run()\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=True)
    assert "Examples:" in done.stdout
    assert done.stderr == "[]\n"


def test_help_is_there_at_once(tmp_path: Path) -> None:
    """The help takes less than 0.3 s: of processor time, since it waits for nothing and other tests share the machine."""
    lab = Program(tmp_path)

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert lab("--help").code == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert 0 < min(seconds() for _ in range(5)) < 0.3


def test_python_m_is_the_same(tmp_path: Path) -> None:
    """`python -m lab_backup` is the program, under its own name."""
    done = subprocess.run(
        [sys.executable, "-m", "lab_backup", "lsit"],
        cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "see: lab-backup --help" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [("lab-backup re", {"repo", "replicate", "restore", "reset-password"}), ("lab-backup repo k", {"keys"})],
)
def test_shells_complete_commands(tmp_path: Path, words: str, expected: set[str]) -> None:
    """The completion that `--install-completion` installs asks the program, which knows its commands."""
    count = str(words.count(" "))
    ended = Program(tmp_path)(_LAB_BACKUP_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=count)
    assert set(ended.stdout.split()) == expected


def options_of(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield every command below `command` with each of its long options."""
    for name, found in getattr(command, "commands", {}).items():
        yield from options_of(found, (*words, name))
    if not hasattr(command, "commands"):
        for parameter in command.params:
            yield from ((" ".join(words), option) for option in parameter.opts if option.startswith("--"))


def test_the_reference_is_complete() -> None:
    """docs/cli.md has a section for each command that exists, and a word about each option it has."""
    common, *sections = re.split(r"^### `lab-backup ", DOCUMENT.read_text(), flags=re.MULTILINE)
    about = {section.partition("`")[0]: section for section in sections}
    options = list(options_of(typer.main.get_command(app)))
    assert {command for command, _ in options} | {"beat"} == set(about)  # the beat has no options
    assert [(command, option) for command, option in options if option not in about[command] + common] == []
