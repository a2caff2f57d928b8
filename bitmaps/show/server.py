"""Serve the page to this machine alone."""

from __future__ import annotations

import importlib.util
import socket
import threading
import webbrowser
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitmaps.errors import InputError

if TYPE_CHECKING:
    from bitmaps.show.groups import Group

HOST = "127.0.0.1"
INSTALL = "pip install 'bitmaps[show]'"
OPTIONS: dict[str, Any] = {
    "server.address": HOST,
    "server.allowedHosts": [HOST, "localhost"],  # against DNS rebinding
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": False,
    "client.toolbarMode": "minimal",  # without a button that deploys
    "client.showErrorLinks": "false",  # to search engines
    "logger.hideWelcomeMessage": True,
    "runner.magicEnabled": False,
    "theme.headingFontSizes": ["2rem", "1.375rem"],
    "theme.light.primaryColor": "#0b57d0",
    "theme.dark.primaryColor": "#2f6fd6",
}
"""They go before what a user's own configuration of Streamlit says."""

shown: list[Group] = []
"""What the page shows. Streamlit runs the page as a script, which takes no arguments."""


def check_installed() -> None:
    """Raises:
    InputError: when the extra is missing, or Streamlit is older than the extra asks for."""
    if any(importlib.util.find_spec(name) is None for name in ("lightning", "streamlit")):
        raise InputError(f"the page needs the extra show: {INSTALL}")
    import streamlit as st

    if not hasattr(getattr(st, "App", None), "run"):
        raise InputError(f"the page needs a newer Streamlit than {st.__version__}: {INSTALL}")


def check_port(port: int) -> None:
    """Raises:
    InputError: for a port that does not exist, or that another program listens on."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port} is no port; valid are 0 (any free one) to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(f"--port {port} cannot be used: {error.strerror}") from error


def serve(groups: Sequence[Group], port: int | None, browser: bool) -> None:
    """Serve the page until somebody stops the command.

    Args:
        port: ``None`` is Streamlit's own, 8501, or the next that is free.
        browser: open it in a browser, if this machine has a screen.
    """
    import streamlit as st

    @asynccontextmanager
    async def announced(_: st.App) -> AsyncIterator[None]:
        url = f"http://{HOST}:{st.get_option('server.port')}"
        print(f"{url} shows it, to this machine alone; Ctrl-C ends it", flush=True)
        if browser and not st.get_option("server.headless"):
            threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()
        yield

    shown[:] = groups
    page = Path(__file__).with_name("page.py")
    chosen = {} if port is None else {"server.port": port}
    st.App(page, lifespan=announced).run(config=OPTIONS | chosen)
