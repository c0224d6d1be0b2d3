"""Work in two stages: many threads wait for the storage, few do what needs a processor."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Fetched = TypeVar("Fetched")
Result = TypeVar("Result")


def staged(
    items: Iterable[Item],
    fetch: Callable[[Item], Fetched],
    work: Callable[[Item, Fetched], Result],
    *,
    fetchers: int,
    workers: int,
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with what `work` makes of what `fetch` brings for it, in order.

    Each runs on threads of its own, as many as `fetchers` and `workers` say. No more than these and one more item are under way, so memory is
    that of so many. An exception of either is raised when it is its item's turn; what was not begun then is not begun any more.
    """
    with (
        ThreadPoolExecutor(fetchers, thread_name_prefix="fetch") as fetching,
        ThreadPoolExecutor(workers, thread_name_prefix="read") as working,
    ):
        window: deque[tuple[Item, Future[Result]]] = deque()
        fetched: deque[Future[Fetched]] = deque()

        def begin(item: Item) -> None:
            future = fetching.submit(fetch, item)
            fetched.append(future)
            # Workers take items in the order of their fetches, so who waits for one has nothing else to do.
            window.append((item, working.submit(lambda: work(item, future.result()))))

        def end() -> tuple[Item, Result]:
            item, future = window.popleft()
            fetched.popleft()
            return item, future.result()

        try:
            for item in items:
                begin(item)
                if len(window) > fetchers + workers:
                    yield end()
            while window:
                yield end()
        finally:
            for waiting in fetched:
                waiting.cancel()
            for _, waits in window:
                waits.cancel()
