"""Work that would hold up all other requests: hashing passwords, asking hosts and storages."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import anyio.to_thread

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Return what `function` returns, called in a thread; requests that are given up leave it running to its own end."""
    return await anyio.to_thread.run_sync(partial(function, *arguments), abandon_on_cancel=True)
