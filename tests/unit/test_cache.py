"""The local index: every place of every blob, the best one first, and nothing lost that could not be loaded again."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab_backup.repository.cache import CONDEMNED, DEAD, USABLE, IndexCache
from lab_backup.repository.errors import CacheError
from lab_backup.repository.index import IndexedPack
from lab_backup.repository.pack import ENTRY, HEADER_SIZE, WRAPPED, Entry, PackInfo, PackKind
from lab_backup.units import MiB


def blob(number: int) -> bytes:
    """Return a made-up blob id."""
    return number.to_bytes(32, "big")


def pack_id(number: int) -> bytes:
    """Return a made-up pack id."""
    return bytes([number]) * 16


def pack(number: int, blobs: list[int]) -> IndexedPack:
    """Return a made-up pack that holds these blobs."""
    rows = [ENTRY.pack(blob(name), HEADER_SIZE + 20 * at, 20, 100 + number, 1) for at, name in enumerate(blobs)]
    return IndexedPack(PackInfo(pack_id(number), PackKind.DATA, 1000, bytes(WRAPPED)), b"".join(rows))


def found_in(cache: IndexCache, name: int) -> bytes | None:
    """Return the pack in which a blob is found."""
    location = cache.locate(blob(name))
    return None if location is None else cache.pack(location.pack).id


def test_places(tmp_path: Path) -> None:
    """What was loaded is found, with all that is needed to read it; what was not is nowhere."""
    with IndexCache(tmp_path) as cache:
        cache.load([("index/a", [pack(1, [1, 2, 3])]), ("index/b", [pack(2, [4])])])
        cache.set_states(removed=(), condemned=())
        location = cache.locate(blob(2))
        assert location is not None
        assert location.entry == Entry(blob(2), HEADER_SIZE + 20, 20, 101, 1)
        assert cache.pack(location.pack) == pack(1, []).info
        assert cache.pack_number(pack_id(1)) == location.pack
        assert cache.locate(blob(9)) is None
        assert cache.pack_number(pack_id(9)) is None
        assert cache.indexes() == {"index/a", "index/b"}
        assert cache.indexed() == {pack_id(1), pack_id(2)}
        assert cache.count() == 4
    with IndexCache(tmp_path) as cache:
        cache.set_states(removed=(), condemned=())
        assert found_in(cache, 4) == pack_id(2)


def test_new_packs_count_only_after_their_states_are_known(tmp_path: Path) -> None:
    """Between loading and `set_states` nothing new may refer to a pack: it may be in a list of removed ones."""
    with IndexCache(tmp_path) as cache:
        cache.load([("index/a", [pack(1, [1])])])
        assert cache.locate(blob(1)) is None
        cache.add("index/b", [pack(2, [2])])
        assert found_in(cache, 2) == pack_id(2), "our own packs count at once"


@settings(max_examples=60)
@given(data=st.data())
def test_against_a_model(data: st.DataObject) -> None:
    """Whatever was loaded, forgotten, condemned, removed and damaged: a blob is found in the best of its packs, or nowhere."""
    tables = {
        number: data.draw(st.lists(st.integers(0, 8), max_size=5, unique=True), label=f"pack {number}")
        for number in range(6)
    }
    groups = st.lists(st.lists(st.integers(0, 5), max_size=3, unique=True), max_size=4)
    present: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory(prefix="lb-") as folder, IndexCache(Path(folder)) as cache:
        for step in range(data.draw(st.integers(1, 4))):
            gone = set(data.draw(st.lists(st.sampled_from(sorted(present)), max_size=2))) if present else set()
            present = {name: packs for name, packs in present.items() if name not in gone}
            cache.forget(gone)
            fresh = {f"index/{step}-{at}": packs for at, packs in enumerate(data.draw(groups))}
            present |= fresh
            cache.load((name, [pack(number, tables[number]) for number in packs]) for name, packs in fresh.items())
            if data.draw(st.booleans(), label="clear"):
                cache.clear()
                cache.load(
                    (name, [pack(number, tables[number]) for number in packs]) for name, packs in present.items()
                )
            condemned, removed = (set(data.draw(st.lists(st.integers(0, 5), max_size=3))) for _ in range(2))
            damaged = set(data.draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), max_size=4)))
            cache.set_states(removed=map(pack_id, removed), condemned=map(pack_id, condemned))
            cache.damaged = {
                (number, blob(name)) for at, name in damaged if (number := cache.pack_number(pack_id(at))) is not None
            }
            living = {number for packs in present.values() for number in packs} - removed
            for name in range(9):
                ranks = {
                    number: 2 if (number, name) in damaged else 1 if number in condemned else 0
                    for number in living
                    if name in tables[number]
                }
                found = found_in(cache, name)
                best = min(ranks.values(), default=None)
                fitting = {pack_id(number) for number, rank in ranks.items() if rank == best}
                assert found in fitting if fitting else found is None
                assert {cache.pack(place.pack).id for place in cache.places(blob(name))} == set(map(pack_id, ranks))
                with cache.snapshot() as get:
                    usable = cache.usable(blob(name), get(blob(name)))
                assert (usable is not None) == (best == 0)
                assert usable is None or ranks[cache.pack(usable).id[0]] == 0
            assert {info.id for _, info in cache.packs()} == set(map(pack_id, living))


def test_numbers_are_for_good(tmp_path: Path) -> None:
    """A pack keeps its number when the index is loaded anew: running writers remember packs by it."""
    with IndexCache(tmp_path) as cache:
        cache.load([("index/a", [pack(1, [1]), pack(2, [2])])])
        cache.set_states(removed=(), condemned=())
        before = [cache.pack_number(pack_id(number)) for number in (1, 2)]
        cache.clear()
        assert cache.locate(blob(1)) is None
        assert cache.states == bytes([USABLE, USABLE])
        cache.load([("index/b", [pack(2, [2]), pack(3, [1])]), ("index/a", [pack(1, [1])])])
        cache.set_states(removed=(), condemned=())
        assert [cache.pack_number(pack_id(number)) for number in (1, 2)] == before


def test_thrown_away_while_loading(tmp_path: Path) -> None:
    """Where somebody else throws the places away in the middle of a load, it does not count as done."""
    with IndexCache(tmp_path) as cache, IndexCache(tmp_path) as other:

        def objects() -> Iterator[tuple[str, list[IndexedPack]]]:
            yield "index/a", [pack(1, [1])]
            other.clear()
            yield "index/b", [pack(2, [2])]

        cache.load(objects())
        assert cache.indexes() == set()
        cache.load([("index/a", [pack(1, [1])]), ("index/b", [pack(2, [2])])])
        cache.set_states(removed=(), condemned=())
        assert [found_in(cache, number) for number in (1, 2)] == [pack_id(1), pack_id(2)]


def test_states(tmp_path: Path) -> None:
    """Removed packs are dead, condemned ones can still be read, and each is back when its list is gone."""
    with IndexCache(tmp_path) as cache:
        cache.load([("index/a", [pack(1, [1]), pack(2, [2])])])
        cache.set_states(removed=[pack_id(1)], condemned=[pack_id(1), pack_id(2), pack_id(7)])
        assert list(cache.states) == [DEAD, CONDEMNED]
        assert cache.locate(blob(1)) is None
        assert found_in(cache, 2) == pack_id(2)
        cache.set_states(removed=(), condemned=())
        assert found_in(cache, 1) == pack_id(1)


def test_orphans(tmp_path: Path) -> None:
    """Packs that no index object names can be read until the states are worked out anew, and are not referred to."""
    with IndexCache(tmp_path) as cache:
        cache.load_orphans([pack(1, [1])])
        assert found_in(cache, 1) == pack_id(1)
        with cache.snapshot() as get:
            assert cache.usable(blob(1), get(blob(1))) is None
        assert cache.indexes() == set()
        cache.set_states(removed=(), condemned=())
        assert cache.locate(blob(1)) is None


def test_twice_in_one_process(tmp_path: Path) -> None:
    """The same cache may be open several times; it is whole for each until the last one lets go."""
    first = IndexCache(tmp_path)
    second = IndexCache(tmp_path)
    first.load([("index/a", [pack(1, [1])])])
    first.close()
    first.close()
    second.set_states(removed=(), condemned=())
    assert found_in(second, 1) == pack_id(1)
    second.close()
    with IndexCache(tmp_path) as third:
        assert third.indexes() == {"index/a"}


PROGRAM = """
import json, os, resource, sys
from pathlib import Path
from unit_cache import pack, blob, found_in
from lab_backup.repository.cache import IndexCache
from lab_backup.repository.errors import CacheError
"""


def in_another_process(directory: Path, program: str) -> str:
    """Run a few lines with this module's functions at hand; return what they print."""
    lines = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("unit_cache", {__file__!r})
module = importlib.util.module_from_spec(spec)
sys.modules["unit_cache"] = module
spec.loader.exec_module(module)
{PROGRAM}
directory = Path({os.fspath(directory)!r})
{program}
"""
    done = subprocess.run([sys.executable, "-c", lines], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout


def test_two_processes(tmp_path: Path) -> None:
    """What another process loads or clears meanwhile moves no pack of ours, and ours are found by it."""
    with IndexCache(tmp_path) as cache:
        cache.load([("index/a", [pack(1, [1])])])
        cache.set_states(removed=(), condemned=())
        in_another_process(
            tmp_path,
            "with IndexCache(directory) as cache:\n"
            "    cache.set_states(removed=(), condemned=())\n"
            "    assert found_in(cache, 1) == pack(1, []).info.id\n"
            "    cache.clear()\n"
            "    cache.load([('index/b', [pack(2, [1, 2])]), ('index/a', [pack(1, [1])])])\n",
        )
        assert found_in(cache, 1) == pack_id(1), "the other's pack is not ours before we look"
        assert cache.locate(blob(2)) is None
        cache.add("index/c", [pack(3, [3])])
        assert [cache.pack_number(pack_id(number)) for number in (1, 2, 3)] == [0, 1, 2]
        assert list(cache.states) == [USABLE, DEAD, USABLE]
        cache.set_states(removed=(), condemned=())
        assert found_in(cache, 2) == pack_id(2)


@pytest.mark.parametrize("damage", ["halved", "emptied", "a page short", "zeroes", "noise", "text"])
def test_damaged_file(tmp_path: Path, damage: str) -> None:
    """A cache that is cut off or overwritten is made anew, empty, and the process survives."""
    with IndexCache(tmp_path) as cache:
        cache.put_objects({f"manifests/{number}": os.urandom(3000) for number in range(200)})
    file = tmp_path / "data.mdb"
    size = file.stat().st_size
    if damage in {"halved", "emptied", "a page short"}:
        os.truncate(file, {"halved": size // 2, "emptied": 0, "a page short": size - 4096}[damage])
    else:
        file.write_bytes({"zeroes": bytes(size), "noise": os.urandom(size), "text": b"hello\n" * 1000}[damage])
    printed = in_another_process(
        tmp_path,
        "with IndexCache(directory) as cache:\n"
        "    print(sum(cache.get_object(f'manifests/{number}') is not None for number in range(200)))\n"
        "    cache.add('index/a', [pack(1, [1])])\n"
        "    print(found_in(cache, 1) == pack(1, []).info.id)\n",
    )
    assert printed.split() == ["0", "True"]


def test_pages_of_noise(tmp_path: Path) -> None:
    """Where only a look into the file shows the damage, that is an error in words, and the next try works."""
    with IndexCache(tmp_path) as cache:
        cache.put_objects({f"manifests/{number}": os.urandom(3000) for number in range(200)})
    file = tmp_path / "data.mdb"
    data = bytearray(file.read_bytes())
    for at in range(2 * 4096, len(data), 4096):
        data[at + 10 : at + 12] = b"\x00\x00"  # the page's flags: it is of no kind now
    file.write_bytes(data)
    program = """
outcome = []
for _ in range(2):
    try:
        with IndexCache(directory) as cache:
            cache.get_object("manifests/1")
            cache.add("index/a", [pack(1, [1])])
            outcome.append("works")
    except CacheError as error:
        outcome.append("CacheError")
print(json.dumps(outcome))
"""
    assert json.loads(in_another_process(tmp_path, program))[-1] == "works"


def test_other_layout(tmp_path: Path) -> None:
    """A cache of another version of the program is thrown away."""
    with lmdb.open(os.fspath(tmp_path), map_size=MiB, max_dbs=8) as env, env.begin(write=True) as txn:
        txn.put(b"layout", b"\x01", db=env.open_db(b"meta", txn=txn))
        txn.put(b"index/x", b"", db=env.open_db(b"indexes", txn=txn))
    with IndexCache(tmp_path) as cache:
        assert cache.indexes() == set()


def test_no_space(tmp_path: Path) -> None:
    """Where the cache cannot grow, the error names its folder and what to do."""
    program = """
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    with IndexCache(directory) as cache:
        for number in range(100):
            cache.put_objects({f"manifests/{number}": os.urandom(30000)})
except CacheError as error:
    print(error, error.hint)
"""
    printed = in_another_process(tmp_path, program)
    assert os.fspath(tmp_path) in printed
    assert "LAB_BACKUP_CACHE" in printed


def test_not_a_folder(tmp_path: Path) -> None:
    """A file in the place of the cache's folder is left alone."""
    (tmp_path / "cache").write_text("mine")
    with pytest.raises((CacheError, OSError)):
        IndexCache(tmp_path / "cache")
    assert (tmp_path / "cache").read_text() == "mine"


def test_objects(tmp_path: Path) -> None:
    """Small objects are kept as they are, and dropped folder by folder."""
    with IndexCache(tmp_path) as cache:
        cache.put_objects({"marks/a/1": b"1", "marks/b/1": b"2", "manifests/a": b"3"})
        cache.drop_objects("marks/", {"marks/b/1"})
        assert [cache.get_object(path) for path in ("marks/a/1", "marks/b/1", "manifests/a")] == [None, b"2", b"3"]
        cache.put_objects({})
        cache.drop_objects("nothing/", set())
