"""The processes of one command: a rank that dies, however it does, leaves none behind."""

from __future__ import annotations

import os
import threading
import time

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
