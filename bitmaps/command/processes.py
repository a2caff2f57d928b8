"""The processes of one command. A signal ends them in order, and a rank that dies leaves none
behind."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from bitmaps.errors import Stopped

LAUNCHER = "BITMAPS_LAUNCHER"  # the id of the process that starts the others


def name_launcher() -> None:
    """Tell the processes that Lightning will start who starts them."""
    os.environ.setdefault(LAUNCHER, str(os.getpid()))


def end_with_launcher() -> None:
    """End this process as soon as the one that started it for a further rank is gone. Lightning
    ends the first rank when another dies, but those would wait for a dead first rank for half an
    hour."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None and "LOCAL_RANK" in os.environ:
        threading.Thread(target=watch, args=(int(launcher),), daemon=True).start()


def watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)  # the main thread may wait in C for a process that is gone


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """While a command runs, SIGTERM and Ctrl-C raise ``Stopped``. A second one ends it at once.
    What was ignored before, such as Ctrl-C by a job in the background, stays ignored."""
    both = (signal.SIGINT, signal.SIGTERM)
    signals = [one for one in both if signal.getsignal(one) is not signal.SIG_IGN]

    def stop(number: int, frame: object) -> None:
        for one in signals:
            signal.signal(one, signal.SIG_DFL)
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # other threads get no signals
        return
    usual = {one: signal.signal(one, stop) for one in signals}
    try:
        yield
    finally:
        for one, handler in usual.items():
            signal.signal(one, handler)
