"""Knows, from the storage's objects alone, whether every backup could be restored at this moment: without cache, reader or index code."""

from blake3 import blake3

from lab_backup.repository import index
from lab_backup.repository.envelope import Kind, unseal
from lab_backup.repository.pack import ENTRY, ID
from lab_backup.repository.repository import PackList
from lab_backup.repository.tree import FAN_OUT, Child, encode_node
from lab_backup.repository.untrusted_json import parse
from support.engine import CHUNK
from support.stage import Stage


class Oracle:
    """Watches backups. `check` is called at every change that could harm one; `lost` holds what was found, in words."""

    def __init__(self, stage: Stage) -> None:
        """Watch the repository on `stage` from now on."""
        self._stage = stage
        self._indexes: dict[str, dict[bytes, set[bytes]]] = {}
        self._needed: dict[str, frozenset[bytes]] = {}
        self._ids: dict[bytes, frozenset[bytes]] = {}
        self.lost: list[str] = []
        for path in stage.paths("index"):
            self._observe("upload", path)
        stage.observers.append(self._observe)

    def watch(self, backup: str, *contents: bytes) -> None:
        """Insist from now on that `backup` can be restored to disks and files of these contents, for as long as its manifest is there."""
        for content in contents:
            if content not in self._ids:
                self._ids[content] = frozenset(self.ids(content))
        self._needed[backup] = frozenset[bytes]().union(*(self._ids[content] for content in contents))
        self.check(f"publication of {backup}")

    @property
    def watched(self) -> set[str]:
        """The backups that are watched."""
        return set(self._needed)

    def ids(self, content: bytes) -> set[bytes]:
        """Return the ids of all chunks and nodes that a disk with this content is made of, as `docs/format/trees.md` says."""
        keys = self._stage.keys
        found: set[bytes] = set()

        def remember(key: bytes, data: bytes) -> bytes:
            identity = blake3(data, key=key).digest()
            found.add(identity)
            return identity

        level: list[Child] = [
            remember(keys.chunk_id, chunk) if chunk.strip(b"\0") else None
            for chunk in (content[at : at + CHUNK] for at in range(0, len(content), CHUNK))
        ]
        height = 0
        while True:
            groups = [level[at : at + FAN_OUT] for at in range(0, len(level), FAN_OUT)]
            level = [remember(keys.node_id, encode_node(height, group)) if any(group) else None for group in groups]
            height += 1
            if len(level) == 1:
                return found

    def _payload(self, kind: Kind, path: str) -> bytes:
        stage = self._stage
        data = stage.storage.read(path)
        return unseal(data, kind=kind, path=path, repository_id=stage.config.repository_id, key=stage.keys.metadata)

    def _observe(self, operation: str, path: str) -> None:
        kind = path.split("/", maxsplit=1)[0]
        if kind == "index":
            if operation == "delete":
                self._indexes.pop(path, None)
            else:
                self._indexes[path] = {
                    pack.info.id: {pack.table[at : at + ID] for at in range(0, len(pack.table), ENTRY.size)}
                    for pack in index.decode(self._payload(Kind.INDEX, path), path)
                }
        if (operation == "delete" and kind in {"packs", "index"}) or kind == "removed":
            self.check(f"{operation} {path}")

    def stored(self) -> dict[bytes, set[bytes]]:
        """Return the packs that a reader can find, and the blobs in each."""
        removed = {
            pack
            for path in self._stage.paths("removed")
            for pack in parse(self._payload(Kind.REMOVED, path), PackList, path).ids
        }
        there = {bytes.fromhex(path.rsplit("/", 1)[1]) for path in self._stage.paths("packs")} - removed
        return {pack: blobs for packs in list(self._indexes.values()) for pack, blobs in packs.items() if pack in there}

    def check(self, moment: str) -> None:
        """Note every watched backup that lacks something."""
        found: set[bytes] = set().union(*self.stored().values())
        for path in self._stage.paths("manifests"):
            backup = path.removeprefix("manifests/")
            missing = self._needed.get(backup, frozenset()) - found
            if missing:
                self.lost.append(f"{moment}: {backup} lacks {len(missing)} blobs")

    def garbage(self) -> int:
        """Return how many stored packs hold nothing that a backup needs."""
        needed: set[bytes] = set()
        for path in self._stage.paths("manifests"):
            needed |= self._needed[path.removeprefix("manifests/")]
        useful = [pack for pack, blobs in self.stored().items() if blobs & needed]
        return len(self._stage.paths("packs")) - len(useful)
