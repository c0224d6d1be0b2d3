"""Requests to honest, strange and hostile servers."""

import errno
import itertools
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab_backup.extent import Extent
from lab_backup.nbd import client as client_module
from lab_backup.nbd.blocks import NbdBlockReader
from lab_backup.nbd.client import NbdClient
from lab_backup.nbd.errors import NbdConnectionError, NbdRequestError
from lab_backup.units import GiB, KiB, MiB
from support.fake_nbd import DATA, STATUS, Asked, Peer, served

ALLOCATION = "base:allocation"
DIRTY = "qemu:dirty-bitmap:b"
SIZE = 4096
CONTENT = bytes(range(256)) * 16
READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6

Answer = Callable[[Peer, Asked], None]


@contextmanager
def client_of(
    *answers: Answer,
    size: int = SIZE,
    contexts: tuple[str, ...] = (ALLOCATION,),
    timeout: float = 5,
    structured: bool = True,
    blocks: tuple[int, int] | None = None,
    flags: int = 1 | 4 | 32 | 64,
) -> Iterator[NbdClient]:
    """Yield a client whose requests get these answers, one each, the last one again and again."""

    def script(peer: Peer) -> None:
        peer.handshake(size, flags=flags, blocks=blocks, contexts=contexts, structured=structured)
        for answer in itertools.chain(answers, itertools.repeat(answers[-1])):
            asked = peer.request()
            if asked.command == DISCONNECT:
                return
            answer(peer, asked)

    with (
        served(script, timeout=timeout) as stream,
        NbdClient.over(stream, "vda", contexts=contexts, timeout=timeout) as client,
    ):
        yield client


def read(client: NbdClient, offset: int = 0, length: int = SIZE) -> bytes:
    """Read into a buffer full of rubbish, so that nothing passes for zeroes by accident."""
    buffer = bytearray(b"\xee" * length)
    client.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def honest(peer: Peer, asked: Asked) -> None:
    """Answer a read of CONTENT in one piece."""
    peer.data(asked, CONTENT[asked.offset : asked.offset + asked.length])


def test_a_read_in_one_piece() -> None:
    """Data lands where it was asked for."""
    with client_of(honest) as client:
        assert read(client) == CONTENT
        assert read(client, 100, 50) == CONTENT[100:150]
        assert read(client, 100, 0) == b""


def test_a_read_of_a_server_without_structured_replies() -> None:
    """The data follows a simple reply."""

    def answer(peer: Peer, asked: Asked) -> None:
        peer.simple(asked.cookie)
        peer.send(CONTENT[asked.offset : asked.offset + asked.length])

    with client_of(answer, structured=False, contexts=()) as client:
        assert read(client, 5, 1000) == CONTENT[5:1005]


@settings(max_examples=40, deadline=None)
@given(cuts=st.sets(st.integers(1, SIZE - 1), max_size=6), data=st.data())
def test_a_read_in_any_pieces_in_any_order(cuts: set[int], data: st.DataObject) -> None:
    """Chunks and holes may come in any order and size, with or without an empty chunk at the end."""
    borders = [0, *sorted(cuts), SIZE]
    pieces = list(itertools.pairwise(borders))
    pieces = data.draw(st.permutations(pieces))
    holes = data.draw(st.lists(st.booleans(), min_size=len(pieces), max_size=len(pieces)))
    apart = data.draw(st.booleans())
    expected = bytearray(CONTENT)

    def answer(peer: Peer, asked: Asked) -> None:
        for number, ((start, end), hole) in enumerate(zip(pieces, holes, strict=True), 1):
            done = number == len(pieces) and not apart
            if hole:
                peer.hole(asked, start, end - start, done=done)
            else:
                peer.data(asked, CONTENT[start:end], at=start, done=done)
        if apart:
            peer.chunk(asked.cookie, 0)

    for (start, end), hole in zip(pieces, holes, strict=True):
        if hole:
            expected[start:end] = bytes(end - start)
    with client_of(answer) as client:
        assert read(client) == expected


def test_large_reads_are_split() -> None:
    """No request is larger than 1 MiB or than the server's maximum, and holes of any size are filled."""
    lengths: list[int] = []

    def answer(peer: Peer, asked: Asked) -> None:
        lengths.append(asked.length)
        peer.hole(asked, asked.offset, asked.length)

    with client_of(answer, size=10 * MiB) as client:
        assert read(client, 1, 3 * MiB) == bytes(3 * MiB)
    assert lengths == [MiB] * 3
    lengths.clear()
    with client_of(answer, size=10 * MiB, blocks=(512, 64 * KiB + 100)) as client:
        read(client, 512, MiB)
    assert set(lengths) == {64 * KiB}


def test_unaligned_reads_are_widened_to_blocks() -> None:
    """A server with large blocks sees whole blocks only; the caller gets just what it asked for."""

    def answer(peer: Peer, asked: Asked) -> None:
        assert asked.offset % 512 == asked.length % 512 == 0
        honest(peer, asked)

    with client_of(answer, blocks=(512, 1024)) as client:
        for offset, length in [(1, 1), (0, 5), (511, 2), (700, 3000), (1024, 512), (4095, 1), (3, 4093)]:
            assert read(client, offset, length) == CONTENT[offset : offset + length]


@pytest.mark.parametrize(("offset", "length"), [(0, SIZE + 1), (SIZE, 1), (-1, 1), (2**64, 1)])
def test_requests_outside_of_the_export_are_not_sent(offset: int, length: int) -> None:
    """What the caller gets wrong never reaches the server."""
    with client_of(honest) as client, pytest.raises(ValueError, match="not within"):
        read(client, offset, length)


def overlapping(peer: Peer, asked: Asked) -> None:
    """Send one half twice."""
    for done in (False, True):
        peer.data(asked, bytes(SIZE // 2), at=0, done=done)


def many(peer: Peer, asked: Asked) -> None:
    """Send one byte after the other."""
    for offset in range(SIZE):
        peer.data(asked, b"x", at=offset, done=False)


def gap(peer: Peer, asked: Asked) -> None:
    """Leave the middle out."""
    peer.data(asked, CONTENT[:100], at=0, done=False)
    peer.data(asked, CONTENT[200:], at=200)


LIES: dict[str, Answer] = {
    "other magic": lambda peer, _: peer.send(bytes(64)),
    "simple reply": lambda peer, asked: peer.simple(asked.cookie),
    "other cookie": lambda peer, asked: peer.chunk(asked.cookie + 1, DATA, bytes(8 + SIZE)),
    "other cookie, simple": lambda peer, asked: peer.simple(asked.cookie + 1, 5),
    "before the range": lambda peer, asked: peer.data(asked, bytes(SIZE), at=2**64 - 1),
    "after the range": lambda peer, asked: peer.data(asked, CONTENT, at=1),
    "far away": lambda peer, asked: peer.data(asked, CONTENT, at=2**63),
    "hole beyond": lambda peer, asked: peer.hole(asked, 0, 2**32 - 1),
    "empty hole": lambda peer, asked: peer.hole(asked, 0, 0),
    "too short a hole": lambda peer, asked: peer.chunk(asked.cookie, 2, bytes(11)),
    "too long": lambda peer, asked: peer.chunk(asked.cookie, DATA, bytes(8), length=0xFFFFFFFF),
    "no data": lambda peer, asked: peer.chunk(asked.cookie, DATA, bytes(8)),
    "no offset": lambda peer, asked: peer.chunk(asked.cookie, DATA, bytes(3)),
    "only the end": lambda peer, asked: peer.chunk(asked.cookie, 0),
    "end with data": lambda peer, asked: peer.chunk(asked.cookie, 0, bytes(4)),
    "empty chunks": lambda peer, asked: peer.chunk(asked.cookie, 0, done=False),
    "half": lambda peer, asked: peer.data(asked, CONTENT[: SIZE // 2]),
    "gap": gap,
    "overlap": overlapping,
    "many pieces": many,
    "extents": lambda peer, asked: peer.status(asked, [(SIZE, 0)]),
    "unknown chunk": lambda peer, asked: peer.chunk(asked.cookie, 99, bytes(16)),
    "error without number": lambda peer, asked: peer.error(asked, 0),
    "short error": lambda peer, asked: peer.chunk(asked.cookie, 0x8001, bytes(5)),
    "giant error": lambda peer, asked: peer.chunk(asked.cookie, 0x8001, b"", length=0xFFFFFFFF),
    "error text cut": lambda peer, asked: peer.chunk(asked.cookie, 0x8001, struct.pack(">IH", 5, 10) + b"short"),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_answers_that_lie_are_refused(lie: Answer) -> None:
    """A read that is not answered by the book is an error, takes no memory, and ends the connection's use."""
    with client_of(lie, timeout=1) as client:
        tracemalloc.start()
        with pytest.raises(NbdConnectionError, match=r"breaks the protocol on export 'vda'"):
            read(client)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MiB
        with pytest.raises(NbdConnectionError, match="not usable"):
            read(client)


@pytest.mark.parametrize("structured", [True, False])
def test_an_error_leaves_the_connection_usable(structured: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """The error is the server's, with its number and words; the next request works."""

    def refuse(peer: Peer, asked: Asked) -> None:
        if structured:
            peer.error(asked, 5, b"disk on fire")
        else:
            peer.simple(asked.cookie, 5)

    def answer(peer: Peer, asked: Asked) -> None:
        if structured:
            honest(peer, asked)
        else:
            peer.simple(asked.cookie)
            peer.send(CONTENT)

    with client_of(refuse, answer, structured=structured, contexts=()) as client:
        with pytest.raises(NbdRequestError, match=r"read of 4\.0 KiB at byte 0 on NBD export 'vda'") as caught:
            read(client)
        assert caught.value.errno == errno.EIO
        assert ("disk on fire" in caught.value.message) is structured
        assert read(client) == CONTENT


def test_an_error_after_some_data_counts() -> None:
    """Data, an error at an offset, and the end, each in a chunk of its own: the read failed, the connection lives."""

    def answer(peer: Peer, asked: Asked) -> None:
        peer.data(asked, CONTENT[:100], done=False)
        peer.chunk(asked.cookie, 0x8002, struct.pack(">IH", 28, 4) + b"full" + struct.pack(">Q", 100), done=False)
        peer.chunk(asked.cookie, 0)

    with client_of(answer, honest) as client:
        with pytest.raises(NbdRequestError, match="full") as caught:
            read(client)
        assert caught.value.errno == errno.ENOSPC
        assert read(client) == CONTENT


def test_an_error_number_that_the_protocol_does_not_know_is_invalid() -> None:
    """A number that means something else on this system does not confuse anybody."""
    with client_of(lambda peer, asked: peer.error(asked, 4242)) as client, pytest.raises(NbdRequestError) as caught:
        read(client)
    assert caught.value.errno == errno.EINVAL


def test_a_server_that_stops_answering_is_given_up() -> None:
    """A request takes no longer than the timeout, even if a byte comes now and then."""

    def dribble(peer: Peer, asked: Asked) -> None:
        peer.chunk(asked.cookie, DATA, struct.pack(">Q", 0), length=8 + SIZE)
        for _ in range(30):
            time.sleep(0.05)
            peer.send(b"x")

    started = time.monotonic()
    with client_of(dribble, timeout=0.3) as client, pytest.raises(NbdConnectionError, match="did not answer within"):
        read(client)
    assert time.monotonic() - started < 3


def test_a_server_that_goes_away_is_a_lost_connection() -> None:
    """The end of the stream in the middle of an answer is an error at once."""

    def vanish(peer: Peer, asked: Asked) -> None:
        peer.chunk(asked.cookie, DATA, bytes(100), length=8 + SIZE)
        raise ConnectionError

    with client_of(vanish) as client, pytest.raises(NbdConnectionError, match="closed the connection"):
        read(client)


def test_an_interrupted_read_does_not_poison_the_next() -> None:
    """After an exception in the middle of an answer the rest of it is never taken for another answer."""

    class Interrupted(BaseException):
        """What Ctrl-C would be."""

    with client_of(honest) as client:
        original = client._stream.receive_into

        def interrupted(view: memoryview) -> None:
            original(view)
            raise Interrupted

        client._stream.receive_into = interrupted  # type: ignore[method-assign] # stands in for a signal
        with pytest.raises(Interrupted):
            read(client)
        client._stream.receive_into = original  # type: ignore[method-assign] # as before
        with pytest.raises(NbdConnectionError, match="not usable"):
            read(client)


def test_a_closed_client_says_so() -> None:
    """`close` may be called twice, and nothing works after it."""
    with client_of(honest) as client:
        client.close()
        client.close()
        with pytest.raises(NbdConnectionError):
            read(client)


class Disk:
    """A server that keeps what is written."""

    def __init__(self) -> None:
        self.content = bytearray(b"\xaa" * SIZE)
        self.seen: list[tuple[int, int, int, int]] = []

    def __call__(self, peer: Peer, asked: Asked) -> None:
        """Do as asked, with a simple reply."""
        self.seen.append((asked.command, asked.offset, asked.length, asked.flags))
        if asked.command == WRITE:
            self.content[asked.offset : asked.offset + asked.length] = peer.receive(asked.length)
        elif asked.command == WRITE_ZEROES:
            self.content[asked.offset : asked.offset + asked.length] = bytes(asked.length)
        peer.simple(asked.cookie)


def test_writes_arrive_at_their_place() -> None:
    """Data of every buffer type, zeroes, trim and flush reach the server as they were meant."""
    disk = Disk()
    with client_of(disk) as client:
        client.write(10, b"bytes")
        client.write(20, bytearray(b"array"))
        client.write(30, memoryview(b"a longer view")[2:8])
        client.write_zeroes(40, 5)
        client.write_zeroes(50, 5, may_trim=False)
        client.trim(0, SIZE)
        client.flush()
    assert disk.content[10:15] == b"bytes"
    assert disk.content[20:25] == b"array"
    assert disk.content[30:36] == b"longer"
    assert disk.content[40:45] == disk.content[50:55] == bytes(5)
    assert disk.seen[3:] == [
        (WRITE_ZEROES, 40, 5, 0),
        (WRITE_ZEROES, 50, 5, 2),
        (TRIM, 0, SIZE, 0),
        (FLUSH, 0, 0, 0),
    ]


def test_zeroes_are_sent_where_the_server_cannot_make_them() -> None:
    """`write_zeroes` holds its promise on every server; trimming is left out where it is not offered."""
    disk = Disk()
    with client_of(disk, flags=1 | 4) as client:
        client.write_zeroes(100, 1000)
        client.trim(0, SIZE)
    assert disk.content[100:1100] == bytes(1000)
    assert disk.content[99] == disk.content[1100] == 0xAA
    assert [command for command, *_ in disk.seen] == [WRITE]


def test_large_writes_are_split() -> None:
    """Writes go in pieces of 1 MiB; zeroes in larger ones, since they carry no data."""
    lengths: list[int] = []

    def answer(peer: Peer, asked: Asked) -> None:
        lengths.append(asked.length)
        if asked.command == WRITE:
            peer.receive(asked.length)
        peer.simple(asked.cookie)

    with client_of(answer, size=GiB) as client:
        client.write(0, bytes(2 * MiB + 5))
        client.write_zeroes(0, 300 * MiB)
    assert lengths == [MiB, MiB, 5, 128 * MiB, 128 * MiB, 44 * MiB]


def test_a_failed_write_leaves_the_connection_usable() -> None:
    """No space is an error of the request, and the next one works."""
    disk = Disk()

    def full(peer: Peer, asked: Asked) -> None:
        peer.receive(asked.length)
        peer.error(asked, 28, b"no room")

    with client_of(full, disk) as client:
        with pytest.raises(NbdRequestError, match="no room") as caught:
            client.write(0, b"x")
        assert caught.value.errno == errno.ENOSPC
        client.write(1, b"y")
    assert disk.content[1:2] == b"y"


def test_what_a_server_cannot_do_is_not_asked_for() -> None:
    """Writing to a read-only export and flushing without the flag are refused here, unaligned writes are a mistake."""
    with client_of(honest, flags=1 | 2) as client:
        refusals: list[Callable[[], None]] = [
            lambda: client.write(0, b"x"),
            lambda: client.write_zeroes(0, 1),
            lambda: client.trim(0, 1),
        ]
        for refused in refusals:
            with pytest.raises(NbdRequestError, match="read-only") as caught:
                refused()
            assert caught.value.errno == errno.EPERM
        with pytest.raises(NbdRequestError, match="flush"):
            client.flush()
    with client_of(honest, blocks=(512, 4096)) as client, pytest.raises(ValueError, match="aligned"):
        client.write(0, b"x")


def statuses(*replies: list[tuple[int, int]]) -> list[Answer]:
    """Return a server that answers with these extents, one list after the other."""

    def answer(reply: list[tuple[int, int]]) -> Answer:
        return lambda peer, asked: peer.status(asked, reply)

    return [answer(reply) for reply in replies]


def test_neighbours_are_merged_over_requests() -> None:
    """Short answers are asked on, long ones cut, and equal neighbours become one."""
    with client_of(*statuses([(100, 0), (100, 3)], [(50, 3)], [(10, 3), (10, 0), (10**6, 0)])) as client:
        assert list(client.status(ALLOCATION)) == [(0, 100, 0), (100, 160, 3), (260, SIZE - 260, 0)]


def test_a_part_of_the_export_can_be_asked_for() -> None:
    """`start` and `end` bound request and answer."""
    asked_for: list[tuple[int, int]] = []

    def answer(peer: Peer, asked: Asked) -> None:
        asked_for.append((asked.offset, asked.length))
        peer.status(asked, [(SIZE, 1)])

    with client_of(answer) as client:
        assert list(client.status(ALLOCATION, 1000, 1500)) == [(1000, 500, 1)]
        assert list(client.status(ALLOCATION, 1000, 1000)) == []
        assert asked_for == [(1000, 500)]
        with pytest.raises(ValueError, match="not within"):
            client.status(ALLOCATION, 0, SIZE + 1)
        with pytest.raises(ValueError, match="not granted"):
            client.status("other:context")


def test_a_large_export_takes_few_requests_made_when_needed() -> None:
    """64 TiB of one kind take one request per 4 GiB, and none before the result is used."""
    asked_for: list[int] = []

    def answer(peer: Peer, asked: Asked) -> None:
        asked_for.append(asked.length)
        peer.status(asked, [(asked.length, asked.offset // 2**40 % 2)])

    with client_of(answer, size=64 << 40) as client:
        runs = client.status(ALLOCATION)
        assert asked_for == []
        next(runs)
        assert len(asked_for) < 300
        assert [flags for _, _, flags in runs] == [1, 0] * 31 + [1]
    assert len(asked_for) == -(-(64 << 40) // (2**32 - 65536))
    assert max(asked_for) < 2**32


def test_only_the_context_that_was_asked_for_is_seen() -> None:
    """With two contexts on a connection each is read alone, in whatever order the server sends them."""

    def answer(peer: Peer, asked: Asked) -> None:
        peer.status(asked, [(SIZE, 1)], context=11, done=False)
        peer.status(asked, [(SIZE, 3)], context=10)

    with client_of(answer, contexts=(ALLOCATION, DIRTY)) as client:
        assert list(client.status(ALLOCATION)) == [(0, SIZE, 3)]
        assert list(client.status(DIRTY)) == [(0, SIZE, 1)]


def twice(peer: Peer, asked: Asked) -> None:
    """Send the same context twice."""
    peer.status(asked, [(SIZE, 0)], done=False)
    peer.status(asked, [(SIZE, 0)])


STATUS_LIES: dict[str, Answer] = {
    "empty extent": lambda peer, asked: peer.status(asked, [(100, 0), (0, 3), (SIZE, 0)]),
    "no extents": lambda peer, asked: peer.status(asked, []),
    "nothing": lambda peer, asked: peer.chunk(asked.cookie, 0),
    "simple reply": lambda peer, asked: peer.simple(asked.cookie),
    "other context": lambda peer, asked: peer.status(asked, [(SIZE, 0)], context=99),
    "twice": twice,
    "half an extent": lambda peer, asked: peer.chunk(asked.cookie, STATUS, struct.pack(">II", 10, SIZE)),
    "data": lambda peer, asked: peer.data(asked, CONTENT),
    "giant": lambda peer, asked: peer.chunk(asked.cookie, STATUS, struct.pack(">I", 10), length=0xFFFFFFFC),
}


@pytest.mark.parametrize("lie", STATUS_LIES.values(), ids=STATUS_LIES)
def test_extents_that_lie_are_refused(lie: Answer) -> None:
    """A map that is not by the book is an error, never a loop, and never read as zeroes."""
    with client_of(lie, timeout=1) as client, pytest.raises(NbdConnectionError, match="protocol"):
        list(client.status(ALLOCATION))


def test_a_map_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that describes a petabyte byte by byte is given up after a bounded number of requests."""
    monkeypatch.setattr(client_module, "FREE_STATUS_REQUESTS", 100)
    requests = 0

    def answer(peer: Peer, asked: Asked) -> None:
        nonlocal requests
        requests += 1
        peer.status(asked, [(1, requests % 2)])

    with client_of(answer, size=2**50) as client, pytest.raises(NbdConnectionError, match="advance"):
        list(client.status(ALLOCATION))
    assert requests < 110


def test_an_error_in_the_map_can_be_asked_again() -> None:
    """A request for extents that fails leaves the connection usable."""

    def refuse(peer: Peer, asked: Asked) -> None:
        peer.error(asked, 5)

    with client_of(refuse, *statuses([(SIZE, 0)])) as client:
        with pytest.raises(NbdRequestError):
            list(client.status(ALLOCATION))
        assert list(client.status(ALLOCATION)) == [(0, SIZE, 0)]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 500), st.integers(0, 3)), min_size=1, max_size=40),
    batches=st.lists(st.integers(1, 5), min_size=1, max_size=40),
)
def test_any_map_comes_out_gapless_and_merged(lengths: list[tuple[int, int]], batches: list[int]) -> None:
    """However the server cuts its map, the flags of every byte are right and no two neighbours are equal."""
    flags = [flag for length, flag in lengths for _ in range(length)]
    sizes = itertools.cycle(batches)

    def answer(peer: Peer, asked: Asked) -> None:
        part = flags[asked.offset : asked.offset + asked.length]
        runs = [(len(list(group)), flag) for flag, group in itertools.groupby(part)]
        peer.status(asked, runs[: next(sizes)])

    with client_of(answer, size=len(flags)) as client:
        runs = list(client.status(ALLOCATION))
    assert [flag for _, length, flag in runs for _ in range(length)] == flags
    assert all(first[2] != second[2] for first, second in itertools.pairwise(runs))
    assert [offset for offset, _, _ in runs] == [0, *itertools.accumulate(length for _, length, _ in runs)][:-1]


def test_only_what_promises_zeroes_is_zero() -> None:
    """A hole without the zero flag is data; neighbours of one kind are one extent."""
    with client_of(*statuses([(100, 1), (100, 0), (100, 2), (SIZE, 3)])) as client:
        reader = NbdBlockReader(client)
        assert (reader.size, reader.readers) == (SIZE, 1)
        assert list(reader.extents()) == [Extent(0, 200), Extent(200, SIZE - 200, zero=True)]


def test_without_a_map_everything_is_data() -> None:
    """An export whose holes are unknown is read whole."""
    with client_of(honest, contexts=()) as client:
        assert list(NbdBlockReader(client).extents()) == [Extent(0, SIZE)]
    with client_of(honest, contexts=(), size=0) as client:
        assert list(NbdBlockReader(client).extents()) == []
