"""QEMU's own monitor, for what libvirt does not tell. libvirt marks a domain as tainted when it is used.

https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html
"""

import json
from pathlib import Path
from typing import Any

import libvirt_qemu

from lab_backup.sources.libvirt.errors import HypervisorError, translated


def command(domain: Any, name: str, /, **arguments: str) -> Any:
    """Have QEMU do the command `name` and return its answer. Raises HypervisorError where it refuses."""
    request = {"execute": name, "arguments": arguments}
    with translated(f"ask QEMU ({name})"):
        answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps(request), 0))
    if "error" in answer:
        raise HypervisorError(f"QEMU refused {name}: {answer['error'].get('desc')}")
    return answer["return"]


def private_directory(domain: Any) -> Path:
    """Return the directory that libvirt has made for the QEMU process of `domain` alone: its master key lies there."""
    return Path(str(command(domain, "qom-get", path="/objects/masterKey0", property="file"))).parent
