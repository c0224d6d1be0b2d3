"""The NBD client against nbdkit and qemu-nbd, compared with libnbd's tools."""

import errno
import itertools
import os
import random
import time
from pathlib import Path

import pytest

from lab_backup.errors import AccessDeniedError
from lab_backup.extent import total
from lab_backup.nbd.address import TcpAddress, UnixAddress
from lab_backup.nbd.blocks import NbdBlockReader
from lab_backup.nbd.client import NbdClient
from lab_backup.nbd.errors import NbdConnectionError, NbdNegotiationError, NbdRequestError
from lab_backup.nbd.protocol import ALLOCATION, DIRTY, dirty_bitmap
from lab_backup.nbd.server import QemuNbd
from lab_backup.units import GiB, KiB, MiB
from support.nbdkit import nbdcopy, nbdinfo_map, nbdkit, run

HOLE_AND_ZERO = 3


def content(client: NbdClient) -> bytes:
    """Return the export put together from its extents, as the engine reads it."""
    reader = NbdBlockReader(client)
    data = bytearray(reader.size)
    for extent in reader.extents():
        if not extent.zero:
            reader.read_into(extent.offset, memoryview(data)[extent.offset : extent.end])
    return bytes(data)


def test_a_sparse_disk_is_read_as_nbdcopy_reads_it(tmp_path: Path) -> None:
    """Content and map of a fragmented disk are what libnbd finds; holes are not read."""
    with (
        nbdkit("--readonly", "sparse-random", "256M", "seed=3", "runlength=65536") as address,
        NbdClient.connect(address, "", contexts=[ALLOCATION]) as client,
    ):
        assert list(client.status(ALLOCATION)) == nbdinfo_map(address)
        assert total(NbdBlockReader(client).extents(), zero=True) > 128 * MiB
        assert content(client) == nbdcopy(address, tmp_path / "copy")
        assert client.read_only


@pytest.mark.parametrize("size", [0, 1, 511, 513, MiB - 1, MiB + 1, 3 * MiB + 77])
def test_odd_sizes_come_out_exact(tmp_path: Path, size: int) -> None:
    """An export need not be a multiple of anything."""
    with (
        nbdkit("--readonly", "pattern", str(size)) as address,
        NbdClient.connect(address, "", contexts=[ALLOCATION]) as client,
    ):
        assert client.size == size
        assert content(client) == nbdcopy(address, tmp_path / "copy")


def test_holes_in_replies_are_filled(tmp_path: Path) -> None:
    """qemu-nbd answers a read over a hole in pieces; the zeroes land in a buffer that was full of rubbish."""
    image = tmp_path / "disk.raw"
    with image.open("wb") as file:
        file.truncate(8 * MiB)
        for offset in range(0, 8 * MiB, 192 * KiB):
            file.seek(offset)
            file.write(random.Random(offset).randbytes(64 * KiB))
    with QemuNbd(image, "raw") as server, server.connect([ALLOCATION]) as client:
        data = bytearray(b"\xee" * client.size)
        client.read_into(0, memoryview(data))
        assert data == image.read_bytes()
        assert list(client.status(ALLOCATION)) == nbdinfo_map(server.address)


def test_what_is_written_is_read_back() -> None:
    """Writes, zeroes and trims of all sizes and places give the disk that a model of them gives."""
    model = bytearray(4 * MiB)
    generator = random.Random(7)
    with nbdkit("memory", "4M") as address, NbdClient.connect(address, "", contexts=[ALLOCATION]) as client:
        for _ in range(60):
            offset = generator.randrange(len(model))
            length = generator.randrange(min(len(model) - offset, 3 * MiB) + 1)
            if generator.random() < 0.6:
                data = generator.randbytes(length)
                client.write(offset, data)
            else:
                data = bytes(length)
                client.write_zeroes(offset, length, may_trim=generator.random() < 0.5)
            model[offset : offset + length] = data
        client.flush()
        assert content(client) == model
        client.trim(0, 4 * MiB)
        assert list(client.status(ALLOCATION)) == [(0, 4 * MiB, HOLE_AND_ZERO)]


def test_two_connections_see_the_same_disk() -> None:
    """What is flushed over one connection is read over another."""
    with (
        nbdkit("memory", "1M") as address,
        NbdClient.connect(address, "") as first,
        NbdClient.connect(address, "") as second,
    ):
        assert first.can_multi_connection
        first.write(MiB - 5, b"there")
        first.flush()
        data = bytearray(5)
        second.read_into(MiB - 5, memoryview(data))
        assert data == b"there"


def test_an_io_error_is_one_of_the_request(tmp_path: Path) -> None:
    """A failing read names place and reason, and when the storage recovers the same connection reads on."""
    trigger = tmp_path / "trigger"
    trigger.touch()
    arguments = ["--filter=error", "pattern", "4M", "error-pread=EIO", "error-pread-rate=100%"]
    with (
        nbdkit("--readonly", *arguments, f"error-pread-file={trigger}") as address,
        NbdClient.connect(address, "") as client,
    ):
        data = bytearray(MiB)
        with pytest.raises(NbdRequestError, match=r"read of 1\.0 MiB at byte 1048576") as caught:
            client.read_into(MiB, memoryview(data))
        assert caught.value.errno == errno.EIO
        trigger.unlink()
        client.read_into(MiB, memoryview(data))
        assert data[:8] == MiB.to_bytes(8, "big")


def test_a_failing_map_is_an_error_of_the_request() -> None:
    """Extents that the server cannot find out are an error, not data or zeroes by guess."""
    with (
        nbdkit("--filter=error", "memory", "4M", "error-extents=EIO", "error-extents-rate=100%") as address,
        NbdClient.connect(address, "", contexts=[ALLOCATION]) as client,
        pytest.raises(NbdRequestError) as caught,
    ):
        list(client.status(ALLOCATION))
    assert caught.value.errno == errno.EIO


def test_a_full_disk_is_told() -> None:
    """Writing to a full disk is ENOSPC, and the connection stays."""
    with nbdkit("full", "1M") as address, NbdClient.connect(address, "") as client:
        with pytest.raises(NbdRequestError) as caught:
            client.write(0, b"x")
        assert caught.value.errno == errno.ENOSPC
        client.read_into(0, memoryview(bytearray(512)))


@pytest.mark.parametrize("strict", [True, False])
def test_the_servers_block_sizes_are_respected(strict: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A server that refuses what is unaligned or too large still gives every byte."""
    limits = ["blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=65536"]
    limits += ["blocksize-error-policy=error"] if strict else []
    with (
        nbdkit("--filter=blocksize-policy", "pattern", "1M", *limits) as address,
        NbdClient.connect(address, "", contexts=[ALLOCATION]) as client,
        nbdkit("--readonly", "pattern", "1M") as plain,
        NbdClient.connect(plain, "") as reference,
    ):
        assert (client.minimum_block, client.maximum_block) == (4096, 65536)
        for offset, length in [(0, MiB), (1, 1), (4095, 2), (100, 300_000), (MiB - 3, 3)]:
            ours, theirs = bytearray(length), bytearray(length)
            client.read_into(offset, memoryview(ours))
            reference.read_into(offset, memoryview(theirs))
            assert ours == theirs


def test_a_server_without_structured_replies_is_read_whole() -> None:
    """An old server has no map; its data still comes."""
    with (
        nbdkit("--readonly", "--no-sr", "pattern", "2M") as address,
        NbdClient.connect(address, "", contexts=[ALLOCATION]) as client,
    ):
        assert client.contexts == frozenset()
        assert content(client)[-8:] == (2 * MiB - 8).to_bytes(8, "big")


def test_a_huge_disk_is_mapped_in_no_time() -> None:
    """The map of 4 TiB with three pieces of data takes a thousand requests, not one per block."""
    started = time.monotonic()
    with (
        nbdkit("data", "1 @1099511627776 2 @3298534883328 3", "size=4T") as address,
        NbdClient.connect(address, "", contexts=[ALLOCATION]) as client,
    ):
        runs = list(client.status(ALLOCATION))
    assert sum(length for _, length, flags in runs if not flags) <= 3 * 64 * KiB
    assert [flags for _, _, flags in runs] == [0, 3, 0, 3, 0, 3]
    assert time.monotonic() - started < 20


def test_a_slow_server_is_given_up() -> None:
    """A read that takes longer than the timeout ends the connection, in time."""
    with (
        nbdkit("--filter=delay", "memory", "1M", "delay-read=30") as address,
        NbdClient.connect(address, "", timeout=1) as client,
    ):
        started = time.monotonic()
        with pytest.raises(NbdConnectionError, match="did not answer within 1 s"):
            client.read_into(0, memoryview(bytearray(512)))
        assert time.monotonic() - started < 5


def test_a_killed_server_is_a_lost_connection(tmp_path: Path) -> None:
    """When the server dies the next request fails at once."""
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(MiB))
    with QemuNbd(image, "raw") as server, server.connect() as client:
        client.read_into(0, memoryview(bytearray(512)))
        assert server._child is not None
        server._child.stop()
        with pytest.raises(NbdConnectionError):
            client.read_into(0, memoryview(bytearray(512)))


def test_unknown_exports_are_named() -> None:
    """The error tells the export that the server does not have."""
    with (
        nbdkit("--filter=exportname", "memory", "1M", "exportname=vda", "exportname-strict=true") as address,
        NbdClient.connect(address, "vda") as client,
    ):
        assert client.size == MiB
        with pytest.raises(NbdNegotiationError, match="vdb"):
            NbdClient.connect(address, "vdb")


def test_nothing_listening_is_told(tmp_path: Path) -> None:
    """A missing socket, a port nobody listens at and an unknown host are lost connections that name the address."""
    with pytest.raises(NbdConnectionError, match="absent"):
        NbdClient.connect(UnixAddress(tmp_path / "absent"), "")
    with pytest.raises(NbdConnectionError, match=r"127\.0\.0\.1:1:"):
        NbdClient.connect(TcpAddress("127.0.0.1", 1), "")
    with pytest.raises(NbdConnectionError, match=r"no-such-host\.invalid"):
        NbdClient.connect(TcpAddress("no-such-host.invalid"), "")
    assert str(TcpAddress("::1")) == "[::1]:10809"
    long = UnixAddress(tmp_path / ("x" * 200))
    with pytest.raises(NbdConnectionError, match="too long"):
        NbdClient.connect(long, "")


def test_a_dirty_bitmap_is_read(tmp_path: Path) -> None:
    """What was written since the bitmap was made is dirty, as nbdinfo says too, and allocation is seen beside it."""
    image = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(image), "1G")
    run("qemu-img", "bitmap", "--add", str(image), "since")
    with QemuNbd(image, "qcow2", read_only=False) as server, server.connect() as client:
        for offset in (0, 512 * MiB + 5, GiB - 1):
            client.write(offset, b"x")
        client.flush()
    context = dirty_bitmap("since")
    with QemuNbd(image, "qcow2", bitmap="since") as server, server.connect([ALLOCATION, context]) as client:
        assert client.contexts == {ALLOCATION, context}
        runs = list(client.status(context))
        assert runs == nbdinfo_map(server.address, context)
        dirty = [(offset, length) for offset, length, flags in runs if flags & DIRTY]
        assert dirty == [(0, 64 * KiB), (512 * MiB, 64 * KiB), (GiB - 64 * KiB, 64 * KiB)]
        assert list(client.status(ALLOCATION)) == nbdinfo_map(server.address)


def test_reads_may_come_between_extents() -> None:
    """The engine reads while the map goes on; both stay right."""
    with (
        nbdkit("--readonly", "sparse-random", "64M", "seed=5", "runlength=4096") as address,
        NbdClient.connect(address, "", contexts=[ALLOCATION]) as client,
    ):
        expected = nbdinfo_map(address)
        seen = []
        for offset, length, flags in client.status(ALLOCATION):
            seen.append((offset, length, flags))
            client.read_into(offset, memoryview(bytearray(min(length, 512))))
        assert seen == expected
        assert all(first[0] + first[1] == second[0] for first, second in itertools.pairwise(seen))


def test_a_socket_of_somebody_else_is_refused() -> None:
    """No permission for the socket is told apart from nobody listening."""
    with nbdkit("memory", "1M") as address:
        address.path.chmod(0o600)
        address.path.parent.chmod(0o755)
        user = os.geteuid()
        os.seteuid(65534)
        try:
            with pytest.raises(AccessDeniedError, match=str(address.path)):
                NbdClient.connect(address, "")
        finally:
            os.seteuid(user)
