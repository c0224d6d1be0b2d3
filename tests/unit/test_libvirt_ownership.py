"""Claims on VMs, and the names under which a backup leaves things on a hypervisor."""

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lab_backup.errors import UsageError
from lab_backup.nbd.tunnel import SshHost
from lab_backup.sources.libvirt.connection import shown
from lab_backup.sources.libvirt.domain import Domain
from lab_backup.sources.libvirt.job import JobDisk, RunningJob, TlsServer, UnixServer, backup_xml
from lab_backup.sources.libvirt.overlay import overlay_name, snapshot_xml
from lab_backup.sources.libvirt.ownership import LEASE, Owner, process_identity
from lab_backup.sources.libvirt.quiesce import obstacle
from lab_backup.sources.libvirt.scratch import FALLBACK, scratch_files, socket_name
from lab_backup.sources.libvirt.transport import libvirt_credentials, ssh_host

NOW = datetime(2030, 1, 1, tzinfo=UTC)
UUID = "3b1e1a51-159d-4fe9-83b1-29b8a9748dfb"


def test_a_claim_is_read_as_it_was_written() -> None:
    """The element holds everything, whatever characters are in it."""
    owner = Owner.new('repo"<&>', "backup", now=NOW)
    assert Owner.from_xml(owner.to_xml()) == owner
    assert owner.expires == NOW + LEASE
    assert owner.renewed(NOW + LEASE).expires == NOW + 2 * LEASE


@pytest.mark.parametrize("text", ["", "<owner/>", "<owner", "<owner host='h' process='p' token='t' repository='r'/>"])
def test_what_is_no_claim_is_not_taken_for_one(text: str) -> None:
    """Elements that we could not have written are no claim."""
    assert Owner.from_xml(text) is None


def test_a_claim_is_dead_when_its_process_is_gone() -> None:
    """This process is alive; one of the same number that began earlier is dead; of other hosts nothing is known."""
    owner = Owner.new("r", "b", now=NOW)
    assert not owner.is_dead
    boot, namespace, pid, start = owner.process.split("/")
    assert int(pid) == os.getpid()
    assert replace(owner, process=f"{boot}/{namespace}/{pid}/{int(start) - 1}").is_dead
    assert replace(owner, process=f"{boot}/{namespace}/4194305/1").is_dead
    assert not replace(owner, process=f"another-boot/{namespace}/{pid}/1").is_dead
    assert not replace(owner, process=f"{boot}/pid:[1]/{pid}/1").is_dead
    assert not replace(owner, process="garbage").is_dead
    assert process_identity(4194305).endswith("/gone")


def test_a_job_is_recognised_by_the_names_of_its_files() -> None:
    """Socket and scratch files carry the token of the claim."""
    job = RunningJob(Path("/run/x") / socket_name("abc123"), ())
    assert job.holds("abc123")
    assert not job.holds("abc124")
    over_tls = RunningJob(None, tuple(scratch_files(UUID, "abc123", DISKS, None).values()))
    assert over_tls.holds("abc123")


DISKS = Domain.parse(
    "<domain><devices><disk type='network'><source protocol='rbd' name='p/i'/><target dev='vda'/></disk>"
    "<disk type='file'><driver type='qcow2'/><source file='/images/b'/><target dev='vdb'/></disk></devices></domain>",
    "",
    running=True,
    persistent=True,
).disks


def test_scratch_files_lie_beside_the_disks() -> None:
    """Beside its own disk, else beside another one, else in a directory for temporary files, else where one is named."""
    places = {target: path.parent for target, path in scratch_files(UUID, "t", DISKS, None).items()}
    assert places == {"vda": Path("/images"), "vdb": Path("/images")}
    assert {path.parent for path in scratch_files(UUID, "t", DISKS[:1], None).values()} == {FALLBACK}
    named = scratch_files(UUID, "t", DISKS, Path("/scratch"))
    assert {path.parent for path in named.values()} == {Path("/scratch")}
    assert len(set(named.values())) == 2


def test_the_job_names_every_disk() -> None:
    """Incremental and full disks go into one job, and those that take no part are said to."""
    disks = [JobDisk("vda", Path("/s/a"), "cp1", True), JobDisk("vdb", Path("/s/b"), None, False)]
    xml = backup_xml(UnixServer(Path("/run/s.sock")), disks, ["vdc"])
    assert '<server transport="unix" socket="/run/s.sock" />' in xml
    assert 'name="vda" backup="yes" type="file" exportname="vda" backupmode="incremental" incremental="cp1"' in xml
    assert 'name="vdb" backup="yes" type="file" exportname="vdb" backupmode="full"' in xml
    assert '<disk name="vdc" backup="no" />' in xml


def test_a_server_on_a_network_has_tls() -> None:
    """The XML of a TCP server always asks for TLS."""
    xml = backup_xml(TlsServer("192.0.2.1", 50000), [])
    assert '<server transport="tcp" name="192.0.2.1" port="50000" tls="yes" />' in xml


def test_a_snapshot_names_every_disk() -> None:
    """Libvirt would put an overlay above a disk that is not mentioned."""
    path = Path("/images") / overlay_name(UUID, "abc", "vda")
    xml = snapshot_xml({"vda": path}, ["vdb"])
    assert f'<source file="{path}" />' in xml
    assert '<disk name="vdb" snapshot="no" />' in xml


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("qemu:///system", "qemu:///system"),
        ("qemu+unix:///session?socket=/x", "qemu+unix:///session"),
        ("qemu+ssh://root:secret@host:22/system?keyfile=/k", "qemu+ssh://root@host:22/system"),
    ],
)
def test_a_uri_is_shown_without_secrets(uri: str, text: str) -> None:
    """Neither password nor parameters appear in messages."""
    assert shown(uri) == text


def test_ssh_logs_in_as_the_uri_says() -> None:
    """User, port and the decision about host keys come from the URI; host keys are checked unless it says otherwise."""
    assert ssh_host("qemu+ssh://root@host:2222/system") == SshHost("host", "root", 2222)
    assert not ssh_host("qemu+ssh://host/system?no_verify=1").check_host_key
    assert ssh_host("qemu+ssh://host/system?no_verify=0").check_host_key
    with pytest.raises(UsageError):
        ssh_host("qemu+ssh:///system")
    with pytest.raises(UsageError):
        ssh_host("qemu+ssh://-oProxyCommand=x/system")


def test_certificates_are_where_libvirt_has_them() -> None:
    """The client's certificates are libvirt's own, or those in the folder that the URI names."""
    assert libvirt_credentials("qemu+tls://h/system").authority == Path("/etc/pki/CA/cacert.pem")
    assert libvirt_credentials("qemu+tls://h/system?pkipath=/p").key == Path("/p/clientkey.pem")


def test_a_guest_is_frozen_only_with_an_agent_that_answers() -> None:
    """Without channel, without agent, or paused, there is an obstacle, in words."""
    assert obstacle("connected", paused=False) is None
    assert obstacle("connected", paused=True) == "the VM is paused"
    assert obstacle("disconnected", paused=False) == "no guest agent answers"
    assert obstacle(None, paused=False) == "the VM has no guest agent channel"
