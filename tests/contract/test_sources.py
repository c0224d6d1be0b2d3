"""The contract of a source, held against each of them: raw and qcow2 images, a VM that is off, and one that runs."""

import os
import re
import subprocess
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import GuestFactory
from lab_backup.demo.hypervisor import Hypervisor
from lab_backup.extent import Extent
from lab_backup.sources.image.source import open_image
from lab_backup.sources.libvirt.source import open_vm
from lab_backup.sources.source import OpenSource
from lab_backup.units import KiB, MiB
from support.vm_backup import traces

pytestmark = pytest.mark.libvirt

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class Case:
    """A source to test: how to make it anew, and what of it is left behind when it is closed."""

    make: Callable[[], OpenSource]
    left: Callable[[], list[str]]


def _image(path: Path, image_format: str) -> Case:
    raw = path / "content.raw"
    raw.write_bytes(os.urandom(3 * MiB) + bytes(2 * MiB) + os.urandom(1 * MiB))
    with raw.open("r+b") as file:
        file.truncate(9 * MiB + 512)
    image = raw
    if image_format == "qcow2":
        image = path / "disk.qcow2"
        command = ["qemu-img", "convert", "-O", "qcow2", str(raw), str(image)]
        subprocess.run(command, check=True, timeout=60)
    before = set(path.iterdir())
    return Case(
        lambda: open_image(image, name="image", format=None), lambda: [str(new) for new in set(path.iterdir()) - before]
    )


def _vm(hypervisor: Hypervisor, factory: GuestFactory, *, running: bool) -> Case:
    guest = factory("contract")
    if running:
        guest.start().wait_ready()

    def make() -> OpenSource:
        return open_vm("contract", connect=hypervisor.uri, repository_id=uuid.uuid4().hex, backup_id=uuid.uuid4().hex)

    def left() -> list[str]:
        checkpoints = [item.getName() for item in guest.domain.listAllCheckpoints(0)]
        return [*traces(guest, hypervisor.directory), *checkpoints]

    return Case(make, left)


@pytest.fixture(params=["raw image", "qcow2 image", "VM off", "VM running"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """Return each source in turn."""
    if request.param.endswith("image"):
        return _image(tmp_path, request.param.split()[0])
    factory = request.getfixturevalue("guest_factory")
    return _vm(request.getfixturevalue("hypervisor"), factory, running=request.param == "VM running")


def _content(source: OpenSource) -> dict[str, bytes]:
    result = {}
    for disk in source.disks:
        data = bytearray(disk.reader.size)
        disk.reader.read_into(0, memoryview(data))
        result[disk.name] = bytes(data)
    return result


def _check_extents(extents: list[Extent], content: bytes) -> None:
    assert [extent.offset for extent in extents] == [0, *(extent.end for extent in extents)][: len(extents)]
    assert sum(extent.length for extent in extents) == len(content)
    for extent in extents:
        if extent.zero:
            assert not any(content[extent.offset : extent.end])


def test_a_source_keeps_its_contract(case: Case) -> None:
    """Its map is gapless, zero means zero, reads agree however they are cut, nothing changes while it is open, and nothing stays."""
    with case.make() as source:
        assert source.kind in {"vm", "image"}
        assert source.source_id
        assert source.name
        assert source.disks
        first = _content(source)
        for disk in source.disks:
            content = first[disk.name]
            assert NAME.fullmatch(disk.name)
            assert not disk.incremental
            _check_extents(list(disk.reader.extents()), content)
            _check_extents(list(disk.changed()), content)
            for offset, length in ((0, 1), (511, 2), (64 * KiB - 1, 64 * KiB + 2), (len(content) - 1, 1)):
                piece = bytearray(length)
                disk.reader.read_into(offset, memoryview(piece))
                assert bytes(piece) == content[offset : offset + length]
        assert all(NAME.fullmatch(file.name) for file in source.configuration)
        source.check()
        assert _content(source) == first
    assert case.left() == []


def test_identity_and_id_stay_the_same(case: Case) -> None:
    """Two openings of one source agree on who it is and which disks it has."""
    seen = []
    for _ in range(2):
        with case.make() as source:
            seen.append(
                (
                    source.kind,
                    source.source_id,
                    source.name,
                    [(disk.name, disk.identity, disk.reader.size) for disk in source.disks],
                )
            )
    assert seen[0] == seen[1]
    assert case.left() == []


def test_an_error_takes_everything_back(case: Case) -> None:
    """A backup that fails half way leaves nothing behind, and the next one works."""

    def fail(source: OpenSource) -> None:
        with source:
            source.disks[0].reader.read_into(0, memoryview(bytearray(KiB)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail(case.make())
    assert case.left() == []
    with case.make() as source:
        source.check()
    assert case.left() == []


def test_as_many_threads_as_promised_may_read(case: Case) -> None:
    """`readers` threads read different places at once and each gets its own bytes."""
    with case.make() as source:
        reader = source.disks[0].reader
        whole = _content(source)[source.disks[0].name]
        wrong: list[int] = []

        def read(start: int) -> None:
            for offset in range(start, len(whole) - 64 * KiB, reader.readers * 512 * KiB):
                piece = bytearray(64 * KiB)
                reader.read_into(offset, memoryview(piece))
                if bytes(piece) != whole[offset : offset + 64 * KiB]:
                    wrong.append(offset)

        threads = [threading.Thread(target=read, args=(number * 512 * KiB,)) for number in range(reader.readers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
