"""A bucket behind a network and servers in trouble: what is committed restores bit for bit, or there is a clear error and nothing half."""

import random
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from lab_backup.errors import LabBackupError
from lab_backup.extent import Extent
from lab_backup.operations.collect import collect
from lab_backup.operations.verify import verify
from lab_backup.repository.backups import Backups
from lab_backup.repository.create import create_repository
from lab_backup.repository.repository import open_repository
from lab_backup.storage.base import StorageAccessError, StorageError, TransientStorageError
from lab_backup.storage.retry import RetryingStorage
from lab_backup.storage.s3.storage import S3Storage
from support.certificates import Authority
from support.engine import CHUNK, back_up, restored
from support.http_proxy import Fault, HttpProxy, Request, never
from support.seaweed import Seaweed

FIRST = random.Random(1).randbytes(5 * CHUNK)
SECOND = FIRST[: 2 * CHUNK] + random.Random(2).randbytes(CHUNK) + FIRST[3 * CHUNK :]


class Scene:
    """A bucket behind the proxy."""

    def __init__(self, server: Seaweed, proxy: HttpProxy, folder: Path) -> None:
        """Keep caches in `folder`."""
        self.server = server
        self.proxy = proxy
        self.folder = folder
        self.turn = 0

    def storage(self, place: tuple[str, str], *, direct: bool = False) -> RetryingStorage:
        """Return the place as a storage, which waits for nothing when it tries again."""
        connection = self.server.connection()
        if not direct:
            connection = replace(connection, endpoint=self.proxy.endpoint)
        return RetryingStorage(S3Storage(*place, connection=connection), attempts=6, sleep=lambda _: None)

    def play(self, plan: Callable[[Request], Fault]) -> int:
        """Make a repository and a first backup in peace; then, under `plan`, open it, back up, verify, collect and restore; return the requests.

        Whatever happens, at the end and without the proxy all that is there is whole.
        """
        self.turn += 1
        place = self.server.place()
        cache = self.folder / f"cache-{self.turn}"
        with closing(self.storage(place, direct=True)) as storage:
            create_repository(storage, passphrase=None, chunk_size=CHUNK, compression="none")
            with open_repository(storage, passphrase=None, cache_directory=cache / "first") as repository:
                back_up(repository, FIRST)
        self.proxy.reset(plan)
        try:
            with open_repository(self.storage(place), passphrase=None, cache_directory=cache) as repository:
                second = back_up(repository, SECOND, changes=[Extent(2 * CHUNK, CHUNK)]).backup
                assert verify(repository, read_data=True).damage == ()
                collect(repository)
                assert restored(repository, second) == SECOND
        finally:
            seen = len(self.proxy.seen)
            self.proxy.reset(never)
            with open_repository(
                self.storage(place, direct=True), passphrase=None, cache_directory=cache / "last"
            ) as repository:
                assert verify(repository, read_data=True).damage == ()
                # In which order, a server that counts whole seconds does not tell.
                contents = [restored(repository, backup.id) for backup in Backups(repository).all()]
                assert contents.count(FIRST) == 1
                assert [content for content in contents if content != FIRST] in ([], [SECOND])
        return seen


@pytest.fixture
def scene(seaweed: Seaweed, tmp_path: Path) -> Iterator[Scene]:
    """Return a scene on the real server."""
    with HttpProxy(int(seaweed.endpoint.rsplit(":", 1)[1])) as proxy:
        yield Scene(seaweed, proxy, tmp_path)


PASSING = [
    Fault.DROP_BEFORE, Fault.DROP_AFTER, Fault.CUT, Fault.FLIP_DOWN, Fault.FLIP_UP, Fault.TWICE, Fault.ERROR_500, Fault.SLOW_DOWN, Fault.TOO_MANY,
]  # fmt: skip
STEP = 9


def test_any_single_fault_is_lived_through(scene: Scene) -> None:
    """Every request of a backup, verification, collection and restore meets one of the faults; over all turns each kind is met all over: nothing is lost, nothing fails."""
    requests = scene.play(never)
    assert requests > 30
    for turn in range(STEP):

        def plan(request: Request, turn: int = turn) -> Fault:
            # Of each nine requests one is hit, so what is tried again gets through; where, and by what, differs from turn to turn.
            hit = request.number % STEP == turn
            return PASSING[(request.number // STEP + turn) % len(PASSING)] if hit else Fault.NONE

        assert scene.play(plan) >= requests


def test_a_storm_is_lived_through(scene: Scene) -> None:
    """With a quarter of all requests refused by an overloaded server, everything still succeeds."""
    chance = random.Random(7)
    scene.play(lambda _: chance.choice([Fault.SLOW_DOWN, Fault.NONE, Fault.NONE, Fault.NONE]))


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(Fault.DENIED, StorageAccessError), (Fault.DROP_AFTER, TransientStorageError)],
    ids=["revoked", "cut off"],
)
def test_an_end_in_the_middle_is_told_and_leaves_all_whole(
    scene: Scene, fault: Fault, kind: type[LabBackupError]
) -> None:
    """Credentials that are revoked, or a line that is cut, at any point: the error says so, and what was committed is there and whole."""
    requests = scene.play(never)
    for last in range(1, requests, max(1, requests // 4)):
        with pytest.raises(kind):
            scene.play(lambda request, last=last: fault if request.number > last else Fault.NONE)  # type: ignore[misc]  # bound now


def test_certificates(seaweed: Seaweed, tmp_path: Path) -> None:
    """An authority of one's own is trusted by `ca` and by nothing else; a stranger's certificate is refused, with a word about what to do."""
    ours = Authority(tmp_path / "authority").server(tmp_path / "ours")
    theirs = Authority(tmp_path / "stranger").certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ours / "server-cert.pem", ours / "server-key.pem")
    bucket, prefix = seaweed.place()

    def open_with(ca: Path | None, endpoint: str) -> S3Storage:
        connection = replace(seaweed.connection(), endpoint=endpoint, ca_bundle=ca)
        return S3Storage(bucket, prefix, connection=connection)

    with HttpProxy(int(seaweed.endpoint.rsplit(":", 1)[1]), tls=context) as proxy:
        with closing(open_with(ours / "ca-cert.pem", proxy.endpoint)) as storage:
            storage.upload("a", b"there")
            assert storage.read("a") == b"there"
        for ca in (theirs, None):
            with (
                closing(open_with(ca, proxy.endpoint)) as storage,
                pytest.raises(StorageError, match="certificate") as refused,
            ):
                storage.read("a")
            assert "?ca=" in str(refused.value.hint)
