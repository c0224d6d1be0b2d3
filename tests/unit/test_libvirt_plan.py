"""Which disks are read incrementally, and why not the others; which checkpoints a backup makes useless."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from lab_backup.sources.libvirt.checkpoint import Checkpoint, belongs_to, checkpoint_name, checkpoint_xml
from lab_backup.sources.libvirt.domain import Disk, Domain
from lab_backup.sources.libvirt.plan import decide
from lab_backup.sources.libvirt.retirement import UNUSED_FOR, superseded
from lab_backup.sources.source import Previous, PreviousDisk
from lab_backup.units import GiB

NOW = datetime(2030, 1, 1, tzinfo=UTC)
VDA = Disk("vda", "disk", "file", "qcow2", "file:/a", "/a", "", "a0", False, False, False, ())
VM = Domain("uuid-1", "web", True, False, True, (VDA,), None, None, "raw", False, "")
BEFORE = Previous("b1", "uuid-1", {"vda": PreviousDisk("vda", GiB, VDA.identity, "cp1")})


def test_everything_alike_is_incremental() -> None:
    """Same VM, same disk, same size, a checkpoint: only changes are read."""
    plan = decide(VDA, GiB, VM, BEFORE, full=False)
    assert (plan.kind, plan.since, plan.reason, plan.keeps_bitmap) == ("incremental", "cp1", None, True)


def test_the_first_backup_is_full_without_a_reason() -> None:
    """Where there is nothing to build on, nothing needs an explanation."""
    plan = decide(VDA, GiB, VM, None, full=True)
    assert (plan.kind, plan.reason) == ("full", None)


@pytest.mark.parametrize(
    ("disk", "size", "facts", "previous", "full", "reason"),
    [
        (VDA, GiB, VM, BEFORE, True, "asked for"),
        (VDA, GiB, replace(VM, uuid="uuid-2"), BEFORE, False, "another VM"),
        (VDA, GiB, VM, replace(BEFORE, disks={}), False, "not in the previous backup"),
        (replace(VDA, serial="new"), GiB, VM, BEFORE, False, "another disk has this name"),
        (VDA, 2 * GiB, VM, BEFORE, False, "resized from 1.0 GiB to 2.0 GiB"),
        (replace(VDA, format="raw"), GiB, VM, BEFORE, False, "raw disks keep no record"),
        (VDA, GiB, replace(VM, persistent=False), BEFORE, False, "transient VM"),
        (
            VDA,
            GiB,
            VM,
            replace(BEFORE, disks={"vda": PreviousDisk("vda", GiB, VDA.identity, None)}),
            False,
            "left no checkpoint",
        ),
    ],
)
def test_every_difference_makes_the_disk_full_and_says_why(
    disk: Disk,
    size: int,
    facts: Domain,
    previous: Previous,
    full: bool,  # noqa: FBT001
    reason: str,
) -> None:
    """Whatever does not fit to the previous backup is named in the reason."""
    plan = decide(disk, size, facts, previous, full=full)
    assert plan.kind == "full"
    assert reason in str(plan.reason)


def test_a_checkpoint_is_named_after_repository_and_backup() -> None:
    """The name leads back to the repository, also where its id is written with dashes."""
    name = checkpoint_name("0123abcd-ffff", "2030-b")
    assert name == "lab-backup-0123abcd-2030-b"
    assert belongs_to(name, "0123abcdffff")
    assert not belongs_to(name, "9999abcdffff")
    assert not belongs_to("somebodys-checkpoint", "0123abcd")


def test_disks_without_a_bitmap_are_named_in_the_checkpoint() -> None:
    """Libvirt would give a bitmap to a disk that is not mentioned."""
    xml = checkpoint_xml("cp<1>", "a & b", {"vda": True, "vdb": False})
    assert '<disk name="vda" checkpoint="bitmap" bitmap="cp&lt;1&gt;" />' in xml
    assert '<disk name="vdb" checkpoint="no" />' in xml


def known(name: str, *disks: str, repository: str = "repo", age: timedelta = timedelta(1)) -> Checkpoint:
    """Return a checkpoint of some disks."""
    return Checkpoint(f"lab-backup-{repository}-{name}", repository, name, NOW - age, disks, {})


def test_a_new_backup_of_all_disks_supersedes_its_predecessors_only() -> None:
    """Older checkpoints of this repository go; the new one, other repositories' and a foreign one stay."""
    items = [known("1", "vda"), known("2", "vda"), known("3", "vda", repository="other"), known("new", "vda")]
    foreign = Checkpoint("nightly", "", "", NOW, ("vda",), {})
    new = "lab-backup-repo-new"
    assert superseded([*items, foreign], new, {"vda"}, {"vda"}, "repo", NOW) == [
        "lab-backup-repo-1",
        "lab-backup-repo-2",
    ]


def test_a_checkpoint_that_another_disk_needs_stays_until_it_is_old() -> None:
    """A backup of one disk leaves the checkpoint of two, unless the other disk is gone or nothing used it for long."""
    two = known("1", "vda", "vdb")
    new = "lab-backup-repo-new"
    assert superseded([two], new, {"vda"}, {"vda", "vdb"}, "repo", NOW) == []
    assert superseded([two], new, {"vda"}, {"vda"}, "repo", NOW) == [two.name]
    old = known("1", "vda", "vdb", age=UNUSED_FOR + timedelta(1))
    assert superseded([old], new, {"vda"}, {"vda", "vdb"}, "repo", NOW) == [old.name]
