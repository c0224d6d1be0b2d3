"""qemu-nbd as a child: its readiness, its end, and what it says when it cannot."""

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lab_backup.errors import AccessDeniedError, BusyError, LabBackupError, NotFoundError
from lab_backup.nbd.errors import NbdConnectionError, NbdRequestError
from lab_backup.nbd.protocol import dirty_bitmap
from lab_backup.nbd.server import QemuNbd, QemuNbdError
from lab_backup.units import KiB, MiB
from support.nbdkit import run
from support.waiting import has_ended, wait_until


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Make a raw image of random bytes."""
    path = tmp_path / "disk.raw"
    path.write_bytes(random.Random(1).randbytes(MiB))
    return path


@pytest.fixture
def qcow2(tmp_path: Path) -> Path:
    """Make an empty qcow2 image."""
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(path), "8M")
    return path


def test_an_image_is_served_at_once(raw: Path) -> None:
    """Inside the context the image can be read, without waiting, and by several clients after each other."""
    with QemuNbd(raw, "raw") as server:
        for _ in range(3):
            with server.connect() as client:
                assert client.read_only
                data = bytearray(client.size)
                client.read_into(0, memoryview(data))
                assert data == raw.read_bytes()
        assert server.alive


def test_nothing_remains(raw: Path) -> None:
    """After the context there is no process, no open file and no lock; even inside it the socket has no file."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    with QemuNbd(raw, "raw") as server:
        pid = server.pid
        sockets = [line for line in Path("/proc/net/unix").read_text().splitlines() if "lab-backup-" in line]
        assert [line for line in sockets if Path(line.split()[-1]).exists()] == []
    assert has_ended(pid)
    assert not server.alive
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    with QemuNbd(raw, "raw", read_only=False):
        pass


def test_writing_is_durable_and_thin(qcow2: Path) -> None:
    """A writable server keeps what was flushed, gives trimmed space back, and leaves a sound image."""
    with QemuNbd(qcow2, "qcow2", read_only=False) as server, server.connect() as client:
        client.write(0, random.Random(2).randbytes(4 * MiB))
        client.flush()
        full = qcow2.stat().st_blocks
        client.trim(MiB, 3 * MiB)
        client.write_zeroes(0, 64 * KiB)
        client.flush()
        assert qcow2.stat().st_blocks < full - 4000
    assert "No errors" in run("qemu-img", "check", str(qcow2))


def test_nothing_can_be_written_by_default(raw: Path) -> None:
    """A server is read-only unless it was asked not to be."""
    before = raw.read_bytes()
    with QemuNbd(raw, "raw") as server, server.connect() as client, pytest.raises(NbdRequestError):
        client.write(0, b"x")
    assert raw.read_bytes() == before


def test_the_format_is_never_guessed(qcow2: Path) -> None:
    """A qcow2 file served as raw is its own bytes."""
    with QemuNbd(qcow2, "raw") as server, server.connect() as client:
        start = bytearray(4)
        client.read_into(0, memoryview(start))
        assert start == b"QFI\xfb"


@pytest.mark.parametrize("name", ["nbd:x:y.raw", "json:{}", "-r", "a,b=c.raw", "ü %s $(x).raw", "line\nbreak"])
def test_any_file_name_is_a_file_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No name is taken for an option, a protocol or a format, given relatively too."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(b"content".ljust(512, b"\0"))
    with QemuNbd(Path(name), "raw") as server, server.connect() as client:
        assert client.size == 512


def test_a_bitmap_is_shown(qcow2: Path) -> None:
    """The persistent bitmap that was named is a context of the export."""
    run("qemu-img", "bitmap", "--add", str(qcow2), "since")
    with QemuNbd(qcow2, "qcow2", bitmap="since") as server, server.connect([dirty_bitmap("since")]) as client:
        assert list(client.status(dirty_bitmap("since"))) == [(0, 8 * MiB, 0)]


def failure(path: Path, image_format: str, **options: str) -> LabBackupError:
    """Return the error of serving `path`."""
    with pytest.raises(LabBackupError) as caught, QemuNbd(path, image_format, bitmap=options.get("bitmap")):
        pass
    return caught.value


def test_what_cannot_be_served_is_told_by_its_cause(tmp_path: Path, raw: Path, qcow2: Path) -> None:
    """Each cause has its class and names the image."""
    short = tmp_path / "short.qcow2"
    short.write_bytes(qcow2.read_bytes()[:100])
    orphan = tmp_path / "orphan.qcow2"
    run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "gone.raw", "-F", "raw", str(orphan), "8M")
    cases = [
        (failure(tmp_path / "absent", "raw"), NotFoundError, "absent"),
        (failure(tmp_path, "raw"), QemuNbdError, str(tmp_path)),
        (failure(raw, "qcow2"), QemuNbdError, "another format"),
        (failure(raw, "floppy5"), QemuNbdError, "does not know"),
        (failure(short, "qcow2"), QemuNbdError, "too short"),
        (failure(orphan, "qcow2"), NotFoundError, "backing file"),
        (failure(qcow2, "qcow2", bitmap="since"), NotFoundError, "bitmap"),
    ]
    for error, kind, text in cases:
        assert type(error) is kind, error
        assert text in error.message
        assert "\n" not in error.message


def test_an_image_in_use_is_busy(qcow2: Path) -> None:
    """QEMU's lock on a file that somebody writes is an error of its own, for reading and for writing."""
    with QemuNbd(qcow2, "qcow2", read_only=False):
        assert isinstance(failure(qcow2, "qcow2"), BusyError)
    with QemuNbd(qcow2, "qcow2"):
        with pytest.raises(BusyError), QemuNbd(qcow2, "qcow2", read_only=False):
            pass
        with QemuNbd(qcow2, "qcow2"):
            pass


def test_an_image_that_may_not_be_read_is_told(raw: Path) -> None:
    """The operating system's refusal is an error of its own."""
    raw.chmod(0)
    script = (
        "import sys; from pathlib import Path\n"
        "from lab_backup.nbd.server import QemuNbd\n"
        "QemuNbd(Path(sys.argv[1]), 'raw').__enter__()\n"
    )
    without_override = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*without_override, sys.executable, "-c", script, str(raw)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert AccessDeniedError.__name__ in done.stderr


def test_a_bitmap_that_was_not_closed_is_told(qcow2: Path) -> None:
    """After QEMU was killed the bitmap is inconsistent, and that is said."""
    run("qemu-img", "bitmap", "--add", str(qcow2), "since")
    with QemuNbd(qcow2, "qcow2", read_only=False) as server, server.connect() as client:
        client.write(0, b"x")
        client.flush()
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.alive)
    assert "not closed cleanly" in failure(qcow2, "qcow2", bitmap="since").message


def test_a_missing_program_is_named(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without qemu-nbd the error tells what to install."""
    monkeypatch.setenv("PATH", "/nonexistent")
    error = failure(raw, "raw")
    assert isinstance(error, NotFoundError)
    assert "qemu-utils" in str(error.hint)


def test_an_unusable_temporary_directory_is_named(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary directory whose path is too long for a socket is an error that says how to change it."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    assert "TMPDIR" in str(failure(raw, "raw").hint)
    assert list(deep.iterdir()) == []


OWNER = """
import sys, threading, time
from pathlib import Path
from lab_backup.nbd.server import QemuNbd
def hold():
    server = QemuNbd(Path(sys.argv[1]), "raw").__enter__()
    print(server.pid, flush=True)
    with server.connect() as client:
        time.sleep(60)
if sys.argv[2] == "thread":
    threading.Thread(target=hold).start()
else:
    hold()
time.sleep(60)
"""


@pytest.mark.parametrize("place", ["main", "thread"])
def test_it_dies_with_its_owner(raw: Path, place: str) -> None:
    """Killing the process that started it leaves no qemu-nbd behind, whichever thread started it."""
    with subprocess.Popen([sys.executable, "-c", OWNER, str(raw), place], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert Path(f"/proc/{pid}/comm").read_text().strip() == "qemu-nbd"
        owner.kill()
    wait_until(lambda: has_ended(pid), 3)


def test_it_outlives_the_thread_that_started_it(raw: Path) -> None:
    """The thread that opens an image may end before the image is closed."""
    server = QemuNbd(raw, "raw")
    opener = threading.Thread(target=server.__enter__)
    opener.start()
    opener.join()
    with server.connect() as client:
        client.read_into(0, memoryview(bytearray(512)))
        assert server.alive
    server.__exit__(None, None, None)


def test_its_death_is_noticed(raw: Path) -> None:
    """When qemu-nbd is killed the next read is an error, `alive` says so, and leaving the context is no failure."""
    with QemuNbd(raw, "raw") as server, server.connect() as client:
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(NbdConnectionError):
            client.read_into(0, memoryview(bytearray(512)))
        wait_until(lambda: not server.alive)


def test_an_interrupt_at_the_terminal_is_not_for_it(raw: Path) -> None:
    """Ctrl-C reaches every process of the terminal's group; qemu-nbd is not in ours."""
    with QemuNbd(raw, "raw") as server:
        assert os.getpgid(server.pid) != os.getpgrp()
