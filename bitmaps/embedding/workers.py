"""Processes that make vectors side by side.

One process with threads is no slower on two cores, but Python's lock is held for 4 to 12 % of the
time, so more than ten threads would wait for each other.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait

import torch

from bitmaps.bert import Bert
from bitmaps.embedding.vectors import Vectors, embed

OpenModel = Callable[[], Bert]
"""Opens a model. It goes to other processes, so it is a function of a module, or a ``partial`` of
one."""

# A server that has imported everything is copied: a process then has 50 MiB of its own, not 200.
# Other systems than Linux cannot copy a process safely.
METHOD = "forkserver" if sys.platform == "linux" else "spawn"


def serve(connection: Connection, open_model: OpenModel, batch_size: int) -> None:
    """Answer lists of texts with their vectors, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the process that asks
    torch.set_num_threads(1)
    model = open_model()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            connection.send(embed(model, connection.recv(), batch_size=batch_size))


@contextlib.contextmanager
def started(count: int, open_model: OpenModel, batch_size: int) -> Iterator[list[Connection]]:
    """Connections to so many new processes, which end with the block or with this process."""
    context = multiprocessing.get_context(METHOD)
    context.set_forkserver_preload([__name__, "bitmaps.loading"])
    connections, processes = [], []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(  # type: ignore[attr-defined]
                target=serve, args=(theirs, open_model, batch_size), daemon=True
            )
            process.start()
            theirs.close()  # the process has it, and the end of either closes the connection
            connections.append(ours)
            processes.append(process)
        yield connections
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def embed_parts(
    parts: Iterable[tuple[int, list[str]]], processes: int, open_model: OpenModel, batch_size: int
) -> Iterator[tuple[int, Vectors]]:
    """The vectors of parts, each when it is done, in any order.

    Args:
        parts: numbers and texts. The next part is read when a process is free.

    Raises:
        ChildProcessError: when a process was ended, for example because memory ran out.
    """
    with started(processes, open_model, batch_size) as free:
        busy: dict[Connection, int] = {}
        for number, texts in parts:
            if not free:
                yield from received(busy, free)
            connection = free.pop()
            with still_there():
                connection.send(texts)
            busy[connection] = number
        while busy:
            yield from received(busy, free)


def received(busy: dict[Connection, int], free: list[Connection]) -> Iterator[tuple[int, Vectors]]:
    """Wait for a process; it is free then."""
    for connection in wait(list(busy)):
        assert isinstance(connection, Connection)
        with still_there():
            vectors = connection.recv()
        free.append(connection)
        yield busy.pop(connection), vectors


@contextlib.contextmanager
def still_there() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise ChildProcessError(
            "a process that made vectors has ended; with fewer --workers there is more memory for "
            "each"
        ) from error
