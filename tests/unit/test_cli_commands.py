"""Each command hands on what was asked, prints one object for scripts, and ends with the right status."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from lab_backup.cli.opening import limit_rate
from lab_backup.errors import AmbiguousError, BusyError, TargetExistsError, UsageError
from lab_backup.operations.catalogue import BackupSummary, Listing
from lab_backup.operations.checkpoints import Checkpoint
from lab_backup.operations.collect import CollectResult
from lab_backup.operations.export import ExportResult
from lab_backup.operations.repositories import KeyInfo, RepositoryInfo, default_cache_directory
from lab_backup.operations.restore import RestoredDisk, RestoreResult
from lab_backup.operations.verify import VerifyResult
from lab_backup.program import app
from lab_backup.repository.check import Damage
from lab_backup.repository.errors import BackupNotFoundError, ChunkCorruptError, WrongKeyError
from lab_backup.repository.manifest import DiskEntry
from lab_backup.repository.marks import Verification
from lab_backup.sources.libvirt.plan import DiskPlan
from lab_backup.sources.source import Quiesce
from lab_backup.units import KiB, MiB

ID = "8f41b7c24cbd4d2f9e1a6b3c5d7e9f01"
CREATED = "2026-01-02T03:04:05Z"
DISK = DiskEntry(
    name="vda", size=1 << 30, chunk_size=1 << 17, root=None, format="qcow2", identity="x", kind="incremental",
    bytes_read=1 << 20, bytes_stored=1 << 19,
)  # fmt: skip
SUMMARY = BackupSummary(
    backup=ID, time="2026-01-02T03:04:05.678Z", source="web", source_kind="vm", source_id="uuid", host="qemu:///system",
    kind="incremental", consistency="filesystem", bytes_total=1 << 30, bytes_read=1 << 20, bytes_stored=1 << 19,
    duration_seconds=1.5, parent="0" * 32, checksum="1" * 64, protected=False, archived=False, deleted=None, tags=(),
    verified=None, disks=(DISK,), files=(), warnings=(), notes=(),
)  # fmt: skip
INFO = RepositoryInfo(
    url="file:///r", id="a" * 32, version=1, created=CREATED, encryption="aes-256-gcm", compression="zstd:3",
    chunk_size=1 << 17, grace=86400,
)  # fmt: skip
KEY = KeyInfo(id="3f2a", kind="argon2id", label="anna", created=CREATED)
RESTORED = RestoreResult(
    backup=ID, source="web", vm="again", uuid="new", started=True, disks=(RestoredDisk("vda", "/d/a.qcow2", "qcow2", 9),),
    bytes_total=9, bytes_written=3, duration_seconds=0.5, warnings=(), notes=(),
)  # fmt: skip
VERIFIED = VerifyResult(backups=2, checked=7, read=3, bytes_read=300, corrupt=0, missing=0, damage=(), notes=())
DAMAGE = Damage("chunk 12ab is not what it was", missing=False, touches=tuple(f"{ID}/vda@{at}" for at in range(5)))
EXPORTED = ExportResult(ID, "web", "/x.tar", ("manifest.json", "vda.qcow2"), 100, 0.1)


class FakeRepository:
    """An open repository that notices when it is closed."""

    closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


class Operations:
    """The operations layer as the commands see it: every function is a recorder with a scripted answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace the functions for one test."""
        self.repository = FakeRepository()
        self.calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._patch = monkeypatch
        self.answer("repositories.needs_passphrase", False)
        self.answer("repositories.open_repository", self.repository)

    def answer(self, function: str, value: object) -> None:
        """Let `module.function` return `value`, or raise it if it is an exception."""

        def recorder(*args: Any, **kwargs: Any) -> object:
            self.calls[function] = (args, kwargs)
            if isinstance(value, BaseException):
                raise value
            return value

        self._patch.setattr(f"lab_backup.operations.{function}", recorder)

    def positional(self, function: str) -> tuple[Any, ...]:
        """Return the positional arguments of the last call."""
        return self.calls[function][0]

    def keywords(self, function: str) -> dict[str, Any]:
        """Return the keyword arguments of the last call, without the progress."""
        return {name: value for name, value in self.calls[function][1].items() if name != "progress"}


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> Operations:
    """Return the faked operations layer, for a user without any setting in the environment."""
    for name in ("REPO", "PASSPHRASE", "CACHE", "DEBUG", "NEW_PASSPHRASE"):
        monkeypatch.delenv(f"LAB_BACKUP_{name}", raising=False)
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    monkeypatch.setenv("TZ", "UTC")
    return Operations(monkeypatch)


@pytest.fixture
def lab(operations: Operations) -> Callable[..., Result]:
    """Return a function that runs a command line on the fakes."""
    del operations

    def run(*arguments: str, **environment: str) -> Result:
        return CliRunner().invoke(app, list(arguments), env=environment)

    return run


Lab = Callable[..., Result]


def only_object(result: Result) -> dict[str, Any]:
    """Return the JSON object on stdout, which must be the only thing there."""
    assert result.stdout.count("\n") == 1
    parsed = json.loads(result.stdout)
    assert isinstance(parsed, dict)
    return parsed


# --- the repository ---


def test_init_passes_its_options(lab: Lab, operations: Operations) -> None:
    """Sizes are understood as people write them; the repository is described, and the recovery sheet is urged."""
    operations.answer("repositories.init_repository", INFO)
    result = lab(
        "repo", "init", "/r", "--chunk-size", "256KiB", "--compression", "none", "--immutable", "30d",
        LAB_BACKUP_PASSPHRASE="secret",
    )  # fmt: skip
    assert result.exit_code == 0
    assert operations.calls["repositories.init_repository"] == (
        ("/r",),
        {
            "passphrase": "secret",
            "chunk_size": 262144,
            "compression": "none",
            "encryption": True,
            "like": None,
            "locked_for": 30 * 86400,
        },
    )
    assert "a" * 32 in result.stdout
    assert "recovery-sheet" in result.stderr
    assert "secret" not in result.output


def test_init_without_encryption_asks_nothing(lab: Lab, operations: Operations) -> None:
    """No passphrase is wanted and no recovery sheet urged where there is no encryption."""
    operations.answer("repositories.init_repository", INFO)
    result = lab("repo", "init", "/r", "--no-encryption", "--json")
    assert only_object(result)["id"] == "a" * 32
    assert operations.keywords("repositories.init_repository")["passphrase"] is None
    assert result.stderr == ""


def test_init_with_a_bad_size_makes_nothing(lab: Lab, operations: Operations) -> None:
    """What cannot be understood ends with 2 before anything is touched."""
    operations.answer("repositories.init_repository", INFO)
    assert lab("repo", "init", "/r", "--chunk-size", "many", "--no-encryption").exit_code == 2
    assert "repositories.init_repository" not in operations.calls


def test_the_passphrase_and_cache_reach_the_repository(lab: Lab, operations: Operations) -> None:
    """An encrypted repository is opened with the passphrase from the environment, and the cache where it is wanted."""
    operations.answer("repositories.needs_passphrase", True)
    operations.answer("repositories.repository_info", INFO)
    result = lab("repo", "info", LAB_BACKUP_REPO="/r", LAB_BACKUP_PASSPHRASE="secret", LAB_BACKUP_CACHE="/c")
    assert result.exit_code == 0
    assert operations.calls["repositories.open_repository"] == (
        ("/r",),
        {"passphrase": "secret", "cache_directory": Path("/c"), "limit_rate": None, "metrics": None},
    )
    assert operations.repository.closed


def test_an_open_repository_asks_nothing(lab: Lab, operations: Operations) -> None:
    """A repository without encryption is opened without a passphrase, and none is asked for."""
    operations.answer("repositories.repository_info", INFO)
    assert lab("repo", "info", "--repo", "/r").exit_code == 0
    assert operations.keywords("repositories.open_repository") == {
        "passphrase": None,
        "cache_directory": default_cache_directory(),
        "limit_rate": None,
        "metrics": None,
    }


@pytest.mark.parametrize(("given", "rate"), [("20MiB", 20 * MiB), ("512KiB", 512 * KiB), ("1000", 1000)])
def test_the_limit_reaches_the_repository(lab: Lab, operations: Operations, given: str, rate: int) -> None:
    """LAB_BACKUP_LIMIT_RATE is a size for each second."""
    operations.answer("repositories.repository_info", INFO)
    assert lab("repo", "info", "--repo", "/r", LAB_BACKUP_LIMIT_RATE=given).exit_code == 0
    assert operations.keywords("repositories.open_repository")["limit_rate"]() == rate


def test_a_limit_in_a_pipe_hangs_nobody(tmp_path: Path) -> None:
    """What is no plain file is refused at once, also a pipe that nobody writes to; a file that becomes one changes nothing."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="no plain file"):
        limit_rate({"LAB_BACKUP_LIMIT_RATE": f"@{tmp_path / 'pipe'}"})
    file = tmp_path / "rate"
    file.write_text("1MiB")
    tell = limit_rate({"LAB_BACKUP_LIMIT_RATE": f"@{file}"})
    file.unlink()
    os.mkfifo(file)
    assert tell is not None
    assert tell() == MiB


def test_a_limit_in_a_file_changes_with_it(tmp_path: Path) -> None:
    """The newest limit that can be understood counts; an empty file lifts it, a missing one is a mistake from the start."""
    file = tmp_path / "rate"
    with pytest.raises(UsageError, match="cannot be read"):
        limit_rate({"LAB_BACKUP_LIMIT_RATE": f"@{file}"})
    rates = []
    tell = None
    for number, text in enumerate(["1MiB\n", "2MiB", "fast", "0", "", "3KiB"]):
        file.write_text(text)
        os.utime(file, ns=(number, number))
        tell = tell or limit_rate({"LAB_BACKUP_LIMIT_RATE": f"@{file}"})
        assert tell is not None
        rates.append(tell())
    file.unlink()
    assert rates == [MiB, 2 * MiB, 2 * MiB, 2 * MiB, None, 3 * KiB]
    assert tell is not None
    assert tell() == 3 * KiB


@pytest.mark.parametrize("given", ["0", "fast", "-1MiB", "@/"])
def test_a_limit_that_is_none(lab: Lab, given: str) -> None:
    """What is no size, or lets nothing through, is a mistake of the user's."""
    assert lab("repo", "info", "--repo", "/r", LAB_BACKUP_LIMIT_RATE=given).exit_code == 2


def test_a_given_passphrase_is_used_whatever_the_repository_says(lab: Lab, operations: Operations) -> None:
    """Who can write the storage cannot talk us out of the passphrase: the engine hears it, and refuses an open repository."""
    operations.answer("repositories.repository_info", INFO)
    assert lab("repo", "info", "--repo", "/r", LAB_BACKUP_PASSPHRASE="secret").exit_code == 0
    assert operations.keywords("repositories.open_repository")["passphrase"] == "secret"


def test_an_unusable_cache_says_where_else(lab: Lab, operations: Operations) -> None:
    """Where the index cannot be cached, such as in a read-only home, the user learns which setting moves it."""
    operations.answer("repositories.open_repository", PermissionError(13, "Permission denied", "/c/abc/data.mdb"))
    result = lab("list", "--repo", "/r", LAB_BACKUP_CACHE="/c")
    assert result.exit_code == 1
    assert "hint: set LAB_BACKUP_CACHE" in result.stderr
    elsewhere = lab("list", "--repo", "/r", LAB_BACKUP_CACHE="/elsewhere")
    assert elsewhere.stderr == "error: /c/abc/data.mdb: Permission denied\n"


def test_the_wrong_passphrase_ends_with_5(lab: Lab, operations: Operations) -> None:
    """Scripts can tell a wrong passphrase from every other failure."""
    operations.answer("repositories.open_repository", WrongKeyError("the passphrase does not open /r", hint="check it"))
    result = lab("list", "--repo", "/r", "--json")
    assert result.exit_code == 5
    assert only_object(result)["error"]["kind"] == "wrong_key"
    assert result.stderr == "error: the passphrase does not open /r\nhint: check it\n"


def test_keys_are_listed_added_and_removed(lab: Lab, operations: Operations) -> None:
    """Listing shows no key; adding takes the new passphrase from its own variable; removing names the key."""
    operations.answer("repositories.list_keys", [KEY])
    operations.answer("repositories.add_key", KEY)
    operations.answer("repositories.remove_key", KEY)
    assert only_object(lab("repo", "keys", "list", "--repo", "/r", "--json"))["keys"][0]["label"] == "anna"
    added = lab("repo", "keys", "add", "--repo", "/r", "--label", "anna", LAB_BACKUP_NEW_PASSPHRASE="new one")
    assert added.exit_code == 0
    assert operations.calls["repositories.add_key"] == (
        (operations.repository, "new one"),
        {"label": "anna", "kdf": "argon2id"},
    )
    assert lab("repo", "keys", "remove", "3f2a", "--repo", "/r").exit_code == 0
    assert operations.calls["repositories.remove_key"] == ((operations.repository, "3f2a"), {})


def test_the_recovery_sheet_is_printed_as_it_is(lab: Lab, operations: Operations) -> None:
    """The page goes to stdout unchanged, so that it can be piped to a printer."""
    operations.answer("repositories.recovery_sheet", "LAB BACKUP\n\n   LABKEY1- ABCDE\n")
    assert lab("repo", "recovery-sheet", "--repo", "/r").stdout == "LAB BACKUP\n\n   LABKEY1- ABCDE\n"


# --- backups ---


def test_backup_vm_passes_its_options(lab: Lab, operations: Operations) -> None:
    """Every option of `backup vm` reaches the operation."""
    operations.answer("backup.backup_vm", SUMMARY)
    options = [
        "--connect",
        "test:///x",
        "--disk",
        "vda",
        "--disk",
        "vdb",
        "--full",
        "--quiesce",
        "require",
        "--scratch-directory",
        "/scratch",
        "--repo",
        "/r",
    ]
    assert lab("backup", "vm", "web", *options).exit_code == 0
    assert operations.positional("backup.backup_vm") == (operations.repository, "web")
    assert operations.keywords("backup.backup_vm") == {
        "connect": "test:///x",
        "disks": ["vda", "vdb"],
        "full": True,
        "quiesce": Quiesce.REQUIRE,
        "scratch_directory": Path("/scratch"),
    }


def test_backup_json_holds_what_is_promised(lab: Lab, operations: Operations) -> None:
    """Scripts find all documented fields, with the time in UTC."""
    operations.answer("backup.backup_vm", SUMMARY)
    made = only_object(lab("backup", "vm", "web", "--repo", "/r", "--json"))
    promised = {
        "backup", "time", "source", "kind", "bytes_total", "bytes_read", "bytes_stored", "duration_seconds",
        "consistency", "warnings", "notes", "disks",
    }  # fmt: skip
    assert promised <= made.keys()
    assert (made["backup"], made["time"], made["kind"]) == (ID, "2026-01-02T03:04:05.678Z", "incremental")
    assert made["disks"][0] | {"kind": "incremental", "bytes_read": 1 << 20, "reason": None} == made["disks"][0]


def test_warnings_change_the_exit_status_and_notes_do_not(lab: Lab, operations: Operations) -> None:
    """A note, such as a missing guest agent, ends with 0; a warning with 3. Both are on stderr."""
    operations.answer("backup.backup_vm", replace(SUMMARY, notes=("the guest agent does not answer",)))
    noted = lab("backup", "vm", "web", "--repo", "/r")
    assert (noted.exit_code, noted.stderr) == (0, "note: the guest agent does not answer\n")
    operations.answer("backup.backup_vm", replace(SUMMARY, warnings=("the checkpoint was lost",)))
    warned = lab("backup", "vm", "web", "--repo", "/r", "--json")
    assert (warned.exit_code, warned.stderr) == (3, "warning: the checkpoint was lost\n")
    assert only_object(warned)["warnings"] == ["the checkpoint was lost"]


def test_a_dry_run_reads_nothing(lab: Lab, operations: Operations) -> None:
    """`--dry-run` only asks for the plan and prints it per disk."""
    plans = [
        DiskPlan("vda", 1 << 30, "checkpoint", None, True, bytes_to_read=1 << 20),
        DiskPlan("vdb", 1 << 20, None, "the disk was resized", True),
    ]
    operations.answer("backup.plan_vm", plans)
    result = lab("backup", "vm", "web", "--repo", "/r", "--dry-run", "--json")
    assert only_object(result)["disks"] == [
        {"name": "vda", "kind": "incremental", "bytes_total": 1 << 30, "bytes_to_read": 1 << 20, "reason": None},
        {
            "name": "vdb",
            "kind": "full",
            "bytes_total": 1 << 20,
            "bytes_to_read": None,
            "reason": "the disk was resized",
        },
    ]
    shown = lab("backup", "vm", "web", "--repo", "/r", "--dry-run").stdout
    assert "1.0 MiB" in shown
    assert "the disk was resized" in shown
    assert "backup.backup_vm" not in operations.calls


def test_backup_image_passes_its_options(lab: Lab, operations: Operations) -> None:
    """Path, name and format reach the operation."""
    operations.answer("backup.backup_image", SUMMARY)
    assert lab("backup", "image", "/d.raw", "--repo", "/r", "--name", "data", "--format", "raw").exit_code == 0
    assert operations.positional("backup.backup_image") == (operations.repository, Path("/d.raw"))
    assert operations.keywords("backup.backup_image") == {"name": "data", "format": "raw"}


def test_list_is_an_object_with_backups(lab: Lab, operations: Operations) -> None:
    """`list --json` is {"backups": [...]} with the fields of `backup --json`; `--source` is handed on."""
    operations.answer("catalogue.list_backups", Listing([SUMMARY], {}))
    listed = only_object(lab("list", "--repo", "/r", "--source", "vm/web", "--json"))
    assert [item["backup"] for item in listed["backups"]] == [ID]
    assert operations.keywords("catalogue.list_backups") == {"source": "vm/web"}


def test_the_list_for_people_is_one_line_a_backup(lab: Lab, operations: Operations) -> None:
    """Id, time, source, kind, sizes and states stand on one line, however narrow the terminal of the caller is."""
    marked = replace(
        SUMMARY,
        protected=True,
        deleted=datetime(2026, 1, 3, tzinfo=UTC),
        verified=Verification(time=CREATED, level="full", ok=False),
        tags=("monthly",),
    )
    operations.answer("catalogue.list_backups", Listing([SUMMARY, marked], {}))
    lines = lab("list", "--repo", "/r").stdout.splitlines()
    assert len(lines) == 3
    assert lines[1].split()[:6] == ["8f41b7c24cbd", "2026-01-02", "03:04", "vm/web", "incremental", "filesystem"]
    assert lines[2].endswith("protected, deleted, DAMAGED 2026-01-02, #monthly")


def test_an_empty_repository_says_so(lab: Lab, operations: Operations) -> None:
    """A new user reads a sentence and not an empty table."""
    operations.answer("catalogue.list_backups", Listing([], {}))
    assert lab("list", "--repo", "/r").stdout == "There are no backups.\n"


def test_unreadable_manifests_end_with_6(lab: Lab, operations: Operations) -> None:
    """Listing goes on past a damaged manifest, names it, and tells scripts that there is damage."""
    operations.answer("catalogue.list_backups", Listing([SUMMARY], {"manifests/ab": "it was changed"}))
    result = lab("list", "--repo", "/r", "--json")
    assert result.exit_code == 6
    assert len(only_object(result)["backups"]) == 1
    assert "manifests/ab cannot be read: it was changed" in result.stderr


def test_show_describes_one_backup(lab: Lab, operations: Operations) -> None:
    """The backup that was named is looked up and described, disks and warnings included."""
    operations.answer("catalogue.find_backup", "found")
    operations.answer("catalogue.summary", replace(SUMMARY, warnings=("mind the gap",)))
    result = lab("show", "latest:vm/web", "--repo", "/r")
    assert operations.positional("catalogue.find_backup") == (operations.repository, "latest:vm/web")
    assert operations.positional("catalogue.summary") == ("found",)
    assert all(text in result.stdout for text in (ID, "vm/web", "vda", "warning: mind the gap"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BackupNotFoundError("there is no backup abcd"), 4),
        (AmbiguousError("abcd fits 2 backups: abcd1, abcd2"), 2),
        (ChunkCorruptError("the manifest is damaged"), 6),
    ],
)
def test_failing_lookups_have_their_status(lab: Lab, operations: Operations, error: Exception, code: int) -> None:
    """Not found, ambiguous (with the candidates) and damaged are told apart."""
    operations.answer("catalogue.find_backup", error)
    result = lab("show", "abcd", "--repo", "/r")
    assert (result.exit_code, result.stderr.splitlines()[0]) == (code, f"error: {error}")
    assert operations.repository.closed


# --- restores ---


def test_restore_vm_passes_its_options(lab: Lab, operations: Operations) -> None:
    """Every option of `restore vm` reaches the operation."""
    operations.answer("catalogue.find_backup", "found")
    operations.answer("restore.restore_vm", RESTORED)
    options = "--repo /r --connect test:///x --name again --overwrite --directory /d --format raw --start --trusted"
    result = lab("restore", "vm", ID, *options.split())
    assert operations.positional("restore.restore_vm") == (operations.repository, "found")
    assert operations.keywords("restore.restore_vm") == {
        "connect": "test:///x", "name": "again", "overwrite": True, "directory": Path("/d"), "pool": None,
        "format": "raw", "start": True, "trusted": True,
    }  # fmt: skip
    assert "Restored VM again (new) from backup 8f41b7c24cbd, and started it" in result.stdout
    assert "/d/a.qcow2" in result.stdout


def test_restore_vm_wants_one_place(lab: Lab, operations: Operations) -> None:
    """A folder and a pool at once make no sense, and nothing is opened."""
    result = lab("restore", "vm", ID, "--repo", "/r", "--directory", "/d", "--pool", "p")
    assert result.exit_code == 2
    assert "repositories.open_repository" not in operations.calls


def test_an_existing_target_ends_with_8(lab: Lab, operations: Operations) -> None:
    """Scripts can tell that something is in the way."""
    operations.answer("catalogue.find_backup", "found")
    operations.answer("restore.restore_vm", TargetExistsError("there is a VM web", hint="use --name or --overwrite"))
    assert lab("restore", "vm", ID, "--repo", "/r").exit_code == 8


def test_a_restore_with_warnings_ends_with_3(lab: Lab, operations: Operations) -> None:
    """A VM that is restored but does not start is done with a warning."""
    operations.answer("catalogue.find_backup", "found")
    operations.answer("restore.restore_vm", replace(RESTORED, started=False, warnings=("it does not start",)))
    result = lab("restore", "vm", ID, "--repo", "/r", "--json")
    assert result.exit_code == 3
    assert only_object(result)["started"] is False


def test_restore_image_passes_its_options(lab: Lab, operations: Operations) -> None:
    """Target, disk and format reach the operation."""
    operations.answer("catalogue.find_backup", "found")
    operations.answer("restore.restore_image", RESTORED)
    options = ["--repo", "/r", "--to", "/out.raw", "--disk", "vda", "--format", "qcow2", "--in-place", "--json"]
    assert only_object(lab("restore", "image", ID, *options))["disks"][0]["path"] == "/d/a.qcow2"
    assert operations.keywords("restore.restore_image") == {
        "to": Path("/out.raw"),
        "disk": "vda",
        "format": "qcow2",
        "in_place": True,
    }


def test_export_passes_its_target(lab: Lab, operations: Operations) -> None:
    """The file is handed on, and what is in it is told."""
    operations.answer("catalogue.find_backup", "found")
    operations.answer("export.export_tar", EXPORTED)
    result = lab("export", ID, "--repo", "/r", "--to", "/x.tar")
    assert operations.positional("export.export_tar") == (operations.repository, "found", Path("/x.tar"))
    assert "manifest.json, vda.qcow2" in result.stdout


# --- upkeep ---


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {"read_data": False, "sample": None}),
        (("--read-data",), {"read_data": True, "sample": None}),
        (("--sample", "5%"), {"read_data": False, "sample": 0.05}),
        (("--sample", "0.5"), {"read_data": False, "sample": 0.5}),
    ],
)
def test_verify_passes_its_depth(
    lab: Lab, operations: Operations, options: tuple[str, ...], expected: dict[str, object]
) -> None:
    """Shares are understood as percent or as a fraction."""
    operations.answer("verify.verify", VERIFIED)
    result = lab("verify", "abcd", "latest:vm/web", "--repo", "/r", *options)
    assert result.exit_code == 0
    assert operations.positional("verify.verify") == (operations.repository, ["abcd", "latest:vm/web"])
    assert operations.keywords("verify.verify") == expected
    assert "Nothing is missing or damaged." in result.stdout


@pytest.mark.parametrize("share", ["0%", "101%", "-5%", "lots", "%", "nan", "inf"])
def test_verify_refuses_other_shares(lab: Lab, operations: Operations, share: str) -> None:
    """A share of nothing, of more than all, or of no number is a usage error."""
    operations.answer("verify.verify", VERIFIED)
    assert lab("verify", "--repo", "/r", "--sample", share).exit_code == 2
    assert "verify.verify" not in operations.calls


def test_damage_ends_with_6_and_is_named(lab: Lab, operations: Operations) -> None:
    """What is wrong and what it touches is printed; the JSON has the counts."""
    operations.answer("verify.verify", replace(VERIFIED, corrupt=1, damage=(DAMAGE,)))
    shown = lab("verify", "--repo", "/r")
    assert shown.exit_code == 6
    assert "chunk 12ab is not what it was" in shown.stdout
    assert "and in 2 more places" in shown.stdout
    parsed = only_object(lab("verify", "--repo", "/r", "--json"))
    assert (parsed["checked"], parsed["corrupt"], parsed["missing"]) == (7, 1, 0)


def test_much_damage_is_summed_up(lab: Lab, operations: Operations) -> None:
    """A person is not shown thousands of lines."""
    operations.answer("verify.verify", replace(VERIFIED, corrupt=500, damage=(DAMAGE,) * 500))
    shown = lab("verify", "--repo", "/r").stdout
    assert "and 480 more" in shown
    assert len(shown.splitlines()) < 120


def test_verification_that_could_not_be_recorded_ends_with_3(lab: Lab, operations: Operations) -> None:
    """All is well, but the repository does not know of it: that is a warning."""
    operations.answer("verify.verify", replace(VERIFIED, notes=("not recorded",)))
    result = lab("verify", "--repo", "/r")
    assert (result.exit_code, "warning: not recorded" in result.stderr) == (3, True)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("delete",), "undelete` takes it back"),
        (("delete", "--now"), "gone for good"),
        (("undelete",), "is back"),
        (("protect",), "is protected"),
        (("unprotect",), "protected no more"),
    ],
)
def test_marks_are_set_and_told(lab: Lab, operations: Operations, command: tuple[str, ...], words: str) -> None:
    """Each command calls its operation with the backup that was named, and says what holds now."""
    operations.answer(f"lifecycle.{command[0]}", SUMMARY)
    result = lab(*command, "8f41", "--repo", "/r")
    assert (result.exit_code, words in result.stdout) == (0, True)
    args, keywords = operations.calls[f"lifecycle.{command[0]}"]
    assert args == (operations.repository, "8f41")
    assert keywords == ({"now": "--now" in command} if command[0] == "delete" else {})


def test_gc_passes_its_options(lab: Lab, operations: Operations) -> None:
    """The grace period is understood as people write it."""
    operations.answer("collect.collect", CollectResult(packs_removed=2, bytes_removed=1 << 20, bytes_live=1 << 30))
    result = lab("gc", "--repo", "/r", "--dry-run", "--grace", "36h", "--exclusive")
    assert operations.keywords("collect.collect") == {"dry_run": True, "grace": 129600, "exclusive": True}
    assert result.stdout == "2 packs would be removed: 1.0 MiB\n1.0 GiB in use\n"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (CollectResult(), 0),
        (CollectResult(notes=["no room to repack"]), 3),
        (CollectResult(missing_chunks=3), 6),
        (BusyError("a backup is running"), 7),
    ],
)
def test_gc_ends_with_what_it_found(lab: Lab, operations: Operations, answer: object, code: int) -> None:
    """Nothing to do, a warning, damage and a running backup are told apart."""
    operations.answer("collect.collect", answer)
    assert lab("gc", "--repo", "/r").exit_code == code


def test_checkpoints_are_listed_and_removed(lab: Lab, operations: Operations) -> None:
    """Listing and removing need a VM and no repository; `--all` stands for all names."""
    found = Checkpoint("lab-backup-a-b", "a", "b", datetime(2026, 1, 2, tzinfo=UTC), ("vda",), {})
    operations.answer("checkpoints.list_checkpoints", [found])
    operations.answer("checkpoints.remove_checkpoints", ["lab-backup-a-b"])
    listed = only_object(lab("checkpoints", "list", "web", "--connect", "test:///x", "--json"))
    assert listed["checkpoints"][0]["name"] == "lab-backup-a-b"
    assert operations.calls["checkpoints.list_checkpoints"] == (("web",), {"connect": "test:///x"})
    assert lab("checkpoints", "remove", "web", "lab-backup-a-b").exit_code == 0
    assert operations.positional("checkpoints.remove_checkpoints") == ("web", ["lab-backup-a-b"])
    assert lab("checkpoints", "remove", "web", "--all").exit_code == 0
    assert operations.positional("checkpoints.remove_checkpoints") == ("web", None)


@pytest.mark.parametrize("what", [(), ("lab-backup-a-b", "--all")])
def test_removing_checkpoints_wants_a_clear_word(lab: Lab, operations: Operations, what: tuple[str, ...]) -> None:
    """Neither nothing nor both a name and --all is accepted."""
    operations.answer("checkpoints.remove_checkpoints", [])
    assert lab("checkpoints", "remove", "web", *what).exit_code == 2
    assert "checkpoints.remove_checkpoints" not in operations.calls


# --- the program itself ---


def test_interrupts_end_with_130(lab: Lab, operations: Operations) -> None:
    """Ctrl-C is told as such, in JSON too, and the repository is closed."""
    operations.answer("verify.verify", KeyboardInterrupt())
    result = lab("verify", "--repo", "/r", "--json")
    assert result.exit_code == 130
    assert only_object(result)["error"]["kind"] == "interrupted"
    assert operations.repository.closed


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), EOFError("end"), ZeroDivisionError("x")])
def test_faults_inside_are_never_silent(lab: Lab, operations: Operations, error: Exception) -> None:
    """Not even a broken pipe to another program, or an unexpected end of file, is taken for a closed terminal."""
    operations.answer("verify.verify", error)
    result = lab("verify", "--repo", "/r")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1 if isinstance(error, OSError) else -2].startswith("error: ")


def test_usage_errors_of_every_level_are_alike(lab: Lab) -> None:
    """Unknown commands and options, missing arguments and bad choices end with 2 and say where help is."""
    for arguments in (
        ("lst",),
        ("repo",),
        ("list", "--bogus"),
        ("show", "--repo", "/r"),
        ("backup", "vm", "web", "--repo", "/r", "--quiesce", "maybe"),
        ("list",),
    ):
        result = lab(*arguments, "--json")
        assert result.exit_code == 2
        assert only_object(result)["error"]["kind"] == "usage"
        assert "hint: see: lab-backup" in result.stderr
        assert "Value error" not in result.stderr


def test_version_and_bare_call(lab: Lab) -> None:
    """`--version` names the program; without any word the help appears."""
    assert lab("--version").stdout == "lab-backup 0.1.0\n"
    assert "Examples:" in lab().stdout


def test_demo_leaves_stdout_to_scripts(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration is shown on stdout; with --json on stderr, and stdout has the outcome."""

    def act(console: Console) -> int:
        console.print("on stage")
        return 0

    monkeypatch.setattr("lab_backup.demo.act.run_demo", act)
    assert lab("demo").stdout == "on stage\n"
    result = lab("demo", "--json")
    assert only_object(result) == {"passed": True}
    assert result.stderr == "on stage\n"
