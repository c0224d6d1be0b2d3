"""What of a backed-up definition may reach for the host that it is restored on.

What would give the guest files of the host, or let it write them (other disks, shared folders, QEMU arguments, scripts, firmware tables,
fixed security labels), is left out with a warning, unless the VM that is being overwritten has the very same already, or the caller trusts
the definition. Files and sockets behind serial ports move into the folder of the restored disks: libvirt, as root, truncates the one and
removes what is in the way of the other, and a renamed VM must not use those of the original.
"""

import re
from collections.abc import Callable, Iterator
from xml.etree.ElementTree import Element

RANDOM_DEVICES = {"/dev/random", "/dev/urandom", "/dev/hwrng"}

_QEMU_BINARY = re.compile(r"/usr/(local/)?(bin|libexec)/qemu[a-z0-9_.-]*")
_TERMINALS = ("serial", "parallel", "console", "channel")
# Elements that give the guest, or let it write, what a path on the host names: where they are, their tag, and what they are.
_HOST_FILES = (
    ("devices", "filesystem", "shared folder"),
    ("devices", "memory", "memory module over"),
    ("devices", "pstore", "crash store in"),
    ("devices", "audio", "sound output to"),
    ("devices/interface", "script", "network script"),
    ("devices/interface", "downscript", "network script"),
    ("sysinfo", "entry", "firmware setting read from"),
    ("os/acpi", "table", "ACPI table in"),
)


class Gate:
    """Decides about the elements of one definition; collects what the user should (`warnings`) and may (`notes`) know."""

    def __init__(
        self, current: Element | None, *, trusted: bool, terminals: str | None, exists: Callable[[str], bool]
    ) -> None:
        """Let pass what the `current` definition of the VM has, or everything if `trusted`; `exists` knows the host's files.

        `terminals` is how paths begin that serial ports may have instead of their own: `/folder/name`; without it they become terminals.
        """
        self._known = set() if current is None else {_fingerprint(element) for element in current.iter()}
        self._trusted = trusted
        self._exists = exists
        self._terminals = terminals
        self._moved: dict[tuple[str, str], str] = {}
        self.warnings: list[str] = []
        self.notes: list[str] = []

    @property
    def moved(self) -> set[str]:
        """The new paths of serial ports."""
        return set(self._moved.values())

    def knows(self, element: Element) -> bool:
        """Whether `element` is nothing new to this host, or trusted."""
        return self._trusted or _fingerprint(element) in self._known

    def admit(self, parent: Element, element: Element, what: str) -> None:
        """Keep `element` if the gate knows it, else remove it from its `parent` and say so."""
        if not self.knows(element):
            parent.remove(element)
            self.warnings.append(
                f"{what} was left out: a backup must not reach for the host; add it again if you want it"
            )

    def confine(self, root: Element) -> None:
        """Go through a whole domain but for its disks, which the caller admits."""
        self._confine_domain(root)
        for where, which, what in _HOST_FILES:
            for parent in root.findall(where):
                for element in parent.findall(which):
                    for path in list(paths(element))[:1]:
                        self.admit(parent, element, f"the {what} {short(path)}")
        for devices in root.findall("devices"):
            self._confine_terminals(devices)
            self._confine_emulator(devices)
            for source in devices.iterfind("rng/backend[@model='random']"):
                if (source.text or "").strip() not in RANDOM_DEVICES and not self._trusted:
                    source.text = "/dev/urandom"

    def _confine_domain(self, root: Element) -> None:
        for element in [child for child in root if child.tag.startswith("{")]:
            values = " ".join(value for item in element.iter() for value in item.attrib.values())
            kind = element.tag.rpartition("}")[2]
            self.admit(root, element, f"the hypervisor's own settings {kind} ({short(values)})")
        for label in root.findall("seclabel"):
            if label.get("type") in {"static", "none"}:
                text = label.findtext("label", default="none")
                self.admit(root, label, f"the fixed security label {short(text)}")

    def _confine_terminals(self, devices: Element) -> None:
        for device in [device for tag in _TERMINALS for device in devices.findall(tag)]:
            if self.knows(device):
                continue
            for log in device.findall("log"):
                self._confine_log(device, log)
            kind, source = device.get("type"), device.find("source")
            listens = kind == "unix" and source is not None and source.get("mode", "bind") == "bind"
            if source is None or not (listens or kind in {"file", "pipe", "dev"}):
                continue
            path = source.get("path", "")
            if listens and device.find("target[@type='virtio']") is not None:
                device.remove(source)  # libvirt chooses a path for these
            elif self._terminals is not None and (listens or kind == "file"):
                source.set("path", self._move(path, "sock" if listens else "log"))
                self.notes.append(f"its serial port on {short(path)} moved to {source.get('path')}")
            else:
                device.remove(source)
                device.set("type", "pty")
                self.notes.append(f"its serial port on {short(path)} became a terminal")

    def _confine_log(self, device: Element, log: Element) -> None:
        path = log.get("file", "")
        if self._terminals is None:
            device.remove(log)
            self.notes.append(f"what its serial port writes is no longer logged to {short(path)}")
        else:
            log.set("file", self._move(path, "log"))
            self.notes.append(f"what its serial port writes is logged to {log.get('file')} instead of {short(path)}")

    def _move(self, path: str, suffix: str) -> str:
        """Return the new path of a terminal's file or socket: the same for the same, and one that nothing has."""
        if (path, suffix) not in self._moved:
            taken = set(self._moved.values())
            names = (
                f"{self._terminals}.console{number}.{suffix}"
                for number in ["", *(f"-{count}" for count in range(2, 1000))]
            )
            self._moved[path, suffix] = next(name for name in names if name not in taken and not self._exists(name))
        return self._moved[path, suffix]

    def _confine_emulator(self, devices: Element) -> None:
        for emulator in devices.findall("emulator"):
            binary = (emulator.text or "").strip()
            if not (self.knows(emulator) or _QEMU_BINARY.fullmatch(binary)) or not self._exists(binary):
                devices.remove(emulator)
                self.notes.append(f"the emulator {short(binary)} was replaced by this host's own")


def paths(element: Element) -> Iterator[str]:
    """Return the absolute paths in an element and all below it."""
    for item in element.iter():
        for text in [item.text or "", *item.attrib.values()]:
            if text.strip().startswith("/"):
                yield text.strip()


def short(text: str) -> str:
    """Return text from a definition as it may appear in a message: on one line, printable, of bounded length."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= 120 else f"{shown[:117]}..."


def _fingerprint(element: Element) -> str:
    """Return a text that is equal for elements which mean the same."""
    children = sorted(_fingerprint(child) for child in element if child.tag not in {"alias", "address"})
    attributes = sorted((key, value) for key, value in element.attrib.items() if key not in {"index", "portid"})
    return f"{element.tag}{attributes}{(element.text or '').strip()!r}({','.join(children)})"
