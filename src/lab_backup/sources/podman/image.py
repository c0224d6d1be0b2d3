"""Images, layer by layer: what a layer holds follows from its digest, so a known one is never read again.

Layers travel in a `docker-archive`, the one form in which Podman hands them out uncompressed, so that the digest of what is
read is the layer's own (the `diff_id` of its image's configuration, OCI image specification) and chunks of it deduplicate.
"""

import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from lab_backup.sources.podman.connection import STREAM_CHUNK, Podman, name_in_path
from lab_backup.sources.podman.errors import PodmanError
from lab_backup.units import MiB

_LAYER = re.compile(r"([0-9a-f]{64})\.tar")
_CONFIG = re.compile(r"([0-9a-f]{64})\.json")
_MAX_CONFIG = 16 * MiB
_END = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image: its id, names, the digests (hexadecimal SHA-256) of its layers from the bottom up, and what it sets."""

    id: str
    names: tuple[str, ...]
    layers: tuple[str, ...]
    architecture: str
    environment: tuple[str, ...]
    entrypoint: tuple[str, ...]


def look_at(podman: Podman, image: str) -> ImageFacts:
    """Return what there is to know about the image `image` (name or id) without reading it. Raises PodmanError."""
    answer = podman.get(f"images/{name_in_path(image)}/json", f"look at the image {image}")
    config = answer.get("Config") or {}
    return ImageFacts(
        id=answer["Id"].removeprefix("sha256:"),
        names=tuple(answer.get("RepoTags") or ()),
        layers=tuple(layer.removeprefix("sha256:") for layer in (answer.get("RootFS") or {}).get("Layers") or ()),
        architecture=str(answer.get("Architecture", "")),
        environment=tuple(config.get("Env") or ()),
        entrypoint=tuple(config.get("Entrypoint") or ()),
    )


def read_image(
    podman: Podman, image: ImageFacts, known: Container[str], store: Callable[[str, BinaryIO], None]
) -> bytes:
    """Hand every layer that is not `known` to `store` (digest, stream); return the image's configuration.

    A layer is checked against its digest while it is stored. Raises PodmanError, also where one is missing.
    """
    wanted = {layer for layer in image.layers if layer not in known}
    config: bytes | None = None
    what = f"read the image {image.id[:12]}"
    with podman.stream("get", f"images/{image.id}/get", what, format="docker-archive") as pieces:
        try:
            with tarfile.open(fileobj=PieceReader(pieces), mode="r|", bufsize=STREAM_CHUNK) as archive:  # type: ignore[call-overload] # it needs nothing but read
                for entry in archive:
                    content = archive.extractfile(entry) if entry.isreg() else None
                    if content is None:
                        continue
                    if (layer := _LAYER.fullmatch(entry.name)) and layer[1] in wanted:
                        _check_while_stored(layer[1], content, store)
                        wanted.discard(layer[1])
                    elif _CONFIG.fullmatch(entry.name) and entry.size <= _MAX_CONFIG:
                        config = content.read()
        except tarfile.TarError as error:
            raise PodmanError(
                f"the image {image.id[:12]} came as a broken archive", hint="run the backup again"
            ) from error
    if wanted or config is None:
        raise PodmanError(
            f"Podman left out a part of the image {image.id[:12]}",
            hint="try by hand: podman save --format docker-archive",
        )
    return config


def _check_while_stored(digest: str, content: Any, store: Callable[[str, BinaryIO], None]) -> None:
    hashing = _Hashing(content)
    store(digest, hashing)  # type: ignore[arg-type] # it is only read
    while hashing.read(STREAM_CHUNK):
        pass
    if hashing.digest != digest:
        raise PodmanError(
            f"layer {digest[:12]} is not what its digest says", hint="check the host's storage: podman system check"
        )


class _Hashing:
    """A stream that hashes what is read from it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = bytes(self._inner.read(size))
        self._hash.update(data)
        return data

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


class PieceReader:
    """Pieces of any size, to be read like a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        """Read from `pieces`."""
        self._pieces = pieces
        self._buffer = bytearray()

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes, fewer only at the end; all of them where `size` is negative."""
        while size < 0 or len(self._buffer) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._buffer += piece
        count = len(self._buffer) if size < 0 else size
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data


def id_of(config: bytes) -> str:
    """Return the id of the image that has this configuration: its hash (OCI image specification)."""
    return hashlib.sha256(config).hexdigest()


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer in a backup: its digest, its size in bytes, and how to read it."""

    digest: str
    size: int
    pieces: Callable[[], Iterable[bytes]]


def archive_of(config: bytes, layers: Iterable[StoredLayer], names: Iterable[str]) -> Iterator[bytes]:
    """Yield the `docker-archive` that makes the image again, under `names`, none of which may be another's."""
    listed = []
    for layer in layers:
        listed.append(f"{layer.digest}.tar")
        yield _header(listed[-1], layer.size)
        yield from layer.pieces()
        yield bytes(-layer.size % tarfile.BLOCKSIZE)
    config_name = f"{id_of(config)}.json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": list(names), "Layers": listed}]).encode()
    for name, data in ((config_name, config), ("manifest.json", manifest)):
        yield _header(name, len(data)) + data + bytes(-len(data) % tarfile.BLOCKSIZE)
    yield _END


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry.tobuf(tarfile.PAX_FORMAT)


def load(podman: Podman, archive: Iterable[bytes]) -> None:
    """Make an image of an archive. Raises PodmanError."""
    podman.send("post", "images/load", "load the image", archive, timeout=3600.0)
