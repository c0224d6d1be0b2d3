"""The handshake with honest, strange and hostile servers."""

import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab_backup.nbd.client import NbdClient
from lab_backup.nbd.errors import NbdConnectionError, NbdError, NbdNegotiationError
from lab_backup.nbd.tls import TlsCredentials
from support.fake_nbd import (
    ACK,
    CONTEXT,
    GO,
    INFO,
    SET_META_CONTEXT,
    STARTTLS,
    STRUCTURED_REPLY,
    WRITABLE,
    Peer,
    served,
)

UNSUPPORTED, TLS_REQUIRED, UNKNOWN = 0x80000001, 0x80000005, 0x80000006
ALLOCATION = "base:allocation"


def greeted(then: Callable[[Peer], None]) -> Callable[[Peer], None]:
    """Return a server that behaves well up to GO and then does `then`."""

    def script(peer: Peer) -> None:
        peer.greet()
        while True:
            option, _ = peer.option()
            if option == GO:
                then(peer)
                return
            peer.answer(option, ACK)

    return script


def test_what_the_server_offers_is_known() -> None:
    """Size, flags, contexts and block sizes of the export are the server's."""

    def script(peer: Peer) -> None:
        peer.handshake(12345, flags=WRITABLE | 256, blocks=(512, 65536), contexts=(ALLOCATION,))

    with (
        served(script) as stream,
        NbdClient.over(stream, "vda", contexts=[ALLOCATION, "qemu:dirty-bitmap:b"]) as client,
    ):
        assert (client.size, client.minimum_block, client.maximum_block) == (12345, 512, 65536)
        assert client.contexts == {ALLOCATION}
        assert client.can_multi_connection
        assert client.can_trim
        assert client.can_write_zeroes
        assert not client.read_only


def test_a_poor_server_is_taken_as_it_is() -> None:
    """Without structured replies there are no contexts, without block sizes the protocol's defaults hold."""

    def script(peer: Peer) -> None:
        peer.handshake(4096, flags=1 | 2, structured=False)

    with served(script) as stream, NbdClient.over(stream, "", contexts=[ALLOCATION]) as client:
        assert client.contexts == frozenset()
        assert client.read_only
        assert not client.can_trim
        assert (client.minimum_block, client.maximum_block) == (1, 32 << 20)


def test_the_client_asks_for_what_it_was_told() -> None:
    """Export and contexts arrive at the server as they were given, in UTF-8."""

    def script(peer: Peer) -> None:
        peer.greet()
        assert peer.option() == (STRUCTURED_REPLY, b"")
        peer.answer(STRUCTURED_REPLY, ACK)
        name = struct.pack(">I", 4) + "dä1".encode()
        query = struct.pack(">I", len(ALLOCATION)) + ALLOCATION.encode()
        assert peer.option() == (SET_META_CONTEXT, name + struct.pack(">I", 1) + query)
        peer.answer(SET_META_CONTEXT, ACK)
        assert peer.option() == (GO, name + struct.pack(">HH", 1, 3))
        peer.export(1)
        peer.answer(GO, ACK)

    with served(script) as stream, NbdClient.over(stream, "dä1", contexts=[ALLOCATION]):
        pass


def test_unknown_information_is_skipped() -> None:
    """A newer server may tell more than we know."""

    def then(peer: Peer) -> None:
        peer.answer(GO, INFO, struct.pack(">H", 77) + b"whatever")
        peer.export(1)
        peer.answer(GO, ACK)

    with served(greeted(then)) as stream, NbdClient.over(stream, "") as client:
        assert client.size == 1


@pytest.mark.parametrize(
    ("greeting", "said"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", "no NBD server"),
        (b"NBDMAGIC" + bytes.fromhex("00420281861253") + bytes(11), "too old"),
        (b"NBDMAGICIHAVEOPT" + bytes(2), "too old"),
    ],
)
def test_other_servers_are_recognised(greeting: bytes, said: str) -> None:
    """What is no NBD server, or one of long ago, is told in words."""
    with served(lambda peer: peer.send(greeting)) as stream, pytest.raises(NbdNegotiationError, match=said):
        NbdClient.over(stream, "")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (UNKNOWN, "has no export 'vdx'"),
        (TLS_REQUIRED, "insists on TLS"),
        (0x80000002, "policy"),
        (0x80000055, "0x80000055"),
    ],
)
def test_a_refused_export_is_told_in_words(kind: int, said: str) -> None:
    """The user learns why, with the server's own words made harmless."""

    def then(peer: Peer) -> None:
        peer.answer(GO, kind, b"because\x1b[31m\n" + b"x" * 1000)

    with served(greeted(then)) as stream, pytest.raises(NbdNegotiationError, match=said) as caught:
        NbdClient.over(stream, "vdx")
    assert "because" in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 700


def endless(peer: Peer) -> None:
    """Send information without end."""
    while True:
        peer.answer(GO, INFO, struct.pack(">H", 77))


def two_sizes(peer: Peer) -> None:
    """Say an impossible size."""
    peer.export(2**63)
    peer.answer(GO, ACK)


def bad_blocks(minimum: int, maximum: int) -> Callable[[Peer], None]:
    """Return a server with impossible block sizes."""

    def then(peer: Peer) -> None:
        peer.export(4096)
        peer.answer(GO, INFO, struct.pack(">HIII", 3, minimum, minimum, maximum))
        peer.answer(GO, ACK)

    return then


@pytest.mark.parametrize(
    "then",
    [
        endless,
        two_sizes,
        bad_blocks(0, 1),
        bad_blocks(3, 4096),
        bad_blocks(4096, 512),
        bad_blocks(1 << 20, 1 << 25),
        lambda peer: peer.answer(GO, ACK),
        lambda peer: peer.answer(GO, 99),
        lambda peer: peer.answer(GO, INFO, struct.pack(">HQ", 0, 4096)),
        lambda peer: peer.answer(GO, INFO, b"", length=0xFFFFFFFF),
        lambda peer: peer.answer(STARTTLS, ACK),
        lambda peer: peer.send(b"\xff" * 20),
    ],
)
def test_answers_that_break_the_protocol_are_refused(then: Callable[[Peer], None]) -> None:
    """Lies about sizes, lengths and order end the handshake at once, with an error."""
    with served(greeted(then)) as stream, pytest.raises(NbdNegotiationError, match="breaks the protocol"):
        NbdClient.over(stream, "")


@pytest.mark.parametrize(
    "answers",
    [
        [struct.pack(">I", 1) + b"qemu:other"],
        [struct.pack(">I", 1) + b"a:a", struct.pack(">I", 1) + b"b:b"],
        [b"\0\0"],
    ],
)
def test_contexts_that_were_not_asked_for_are_refused(answers: list[bytes]) -> None:
    """A server cannot slip in other contexts or give two of them one id."""

    def script(peer: Peer) -> None:
        peer.greet()
        peer.answer(peer.option()[0], ACK)
        option, _ = peer.option()
        for answer in answers:
            peer.answer(option, CONTEXT, answer)
        peer.answer(option, ACK)

    with served(script) as stream, pytest.raises(NbdNegotiationError, match="context"):
        NbdClient.over(stream, "", contexts=["a:a", "b:b"])


def test_a_server_without_tls_gets_nothing_in_clear_text() -> None:
    """Where TLS was asked for, its refusal ends the connection before the export is named."""
    seen: list[int] = []

    def script(peer: Peer) -> None:
        peer.greet()
        while True:
            option, _ = peer.option()
            seen.append(option)
            peer.answer(option, UNSUPPORTED)

    with served(script) as stream, pytest.raises(NbdNegotiationError, match="TLS"):
        NbdClient.over(stream, "secret", tls=credentials(), hostname="localhost")
    assert seen == [STARTTLS]


def credentials() -> TlsCredentials:
    """Return credentials that are never looked at."""
    return TlsCredentials(authority=Path("/nowhere/ca-cert.pem"))


def test_tls_needs_a_name_to_check() -> None:
    """Without a host name nothing could be checked, so nothing is sent."""

    def script(peer: Peer) -> None:
        peer.greet()

    with served(script) as stream, pytest.raises(NbdNegotiationError, match="host name"):
        NbdClient.over(stream, "", tls=credentials())


@pytest.mark.parametrize("sent", [b"", b"NBDMAGIC", b"NBDMAGICIHAVEOPT\0\3"])
def test_a_server_that_hangs_up_is_a_lost_connection(sent: bytes) -> None:
    """The end of the stream is an error wherever it comes."""
    with served(lambda peer: peer.send(sent)) as stream, pytest.raises(NbdConnectionError):
        NbdClient.over(stream, "")


def test_a_silent_server_is_given_up() -> None:
    """A server that says nothing holds us no longer than the timeout."""

    def script(peer: Peer) -> None:
        peer.receive(1)

    started = time.monotonic()
    with served(script, timeout=0.2) as stream, pytest.raises(NbdConnectionError, match="did not answer"):
        NbdClient.over(stream, "")
    assert time.monotonic() - started < 2


def test_a_dribbling_server_is_given_up() -> None:
    """A server that sends a byte now and then cannot hold us for ever either."""

    def script(peer: Peer) -> None:
        for byte in b"NBDMAGICIHAVEOPT\0\3":
            time.sleep(0.1)
            peer.send(bytes([byte]))

    started = time.monotonic()
    with served(script, timeout=0.3) as stream, pytest.raises(NbdError, match="did not answer"):
        NbdClient.over(stream, "")
    assert time.monotonic() - started < 1.5


def test_names_longer_than_the_protocol_allows_are_refused() -> None:
    """The server never sees a name of more than 4096 bytes."""
    with served(greeted(lambda _: None)) as stream, pytest.raises(NbdNegotiationError, match="4096"):
        NbdClient.over(stream, "x" * 4097)
