"""Names of files in texts for people. A name may hold any bytes, among them what would control a terminal."""

_NAMED = 10  # enough to see what kind of files it is about


def shown(path: bytes) -> str:
    """Return `path` for a message: what cannot be printed is escaped; the root of a tree, the empty path, is `.`."""
    text = path.decode("utf-8", "backslashreplace")
    return (
        "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text) or "."
    )


class NameLists:
    """Files that share a fate, by what it is: how many they are and the first names, however many there will be."""

    def __init__(self) -> None:
        """Begin with none."""
        self._found: dict[str, tuple[int, list[str]]] = {}

    def add(self, fate: str, path: bytes) -> None:
        """Note that `fate` happened to `path`, which reads on as in `could not be read: a, b`."""
        count, names = self._found.get(fate, (0, []))
        if count < _NAMED:
            names.append(shown(path))
        self._found[fate] = (count + 1, names)

    def sentences(self) -> list[str]:
        """Return one sentence for each fate, in the order in which they were met."""
        return [_sentence(fate, count, names) for fate, (count, names) in self._found.items()]


def _sentence(fate: str, count: int, names: list[str]) -> str:
    rest = f" and {count - len(names)} more" if count > len(names) else ""
    return f"{fate} ({count}): {', '.join(names)}{rest}"
