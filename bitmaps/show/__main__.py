"""Open a local page on which to try models: masked words, sentences or classes.

    python -m bitmaps.show <run folder>                  # fp32, naive, trained and packed
    python -m bitmaps.show <packed folder>               # without its run: packed alone
    python -m bitmaps.show <run folder> <run folder> --port 8600 --no-browser

Nothing that is typed there leaves this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os

from bitmaps.calling import as_called, called
from bitmaps.errors import InputError, refuse, while_somebody_reads
from bitmaps.show.server import check_installed, check_port, serve


def main() -> None:
    given = arguments_parser().parse_args()
    # before the Hub's client is imported: of a run's first model its cache has to do
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        check_installed()
        if given.port is not None:
            check_port(given.port)
        from bitmaps.show.groups import open_group  # imports torch

        groups = [open_group(folder) for folder in dict.fromkeys(given.folders)]
    except InputError as error:
        refuse(error)
    for group in groups:
        print(f"{group.name}: {', '.join(one.name for one in group.models)}")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    with contextlib.suppress(KeyboardInterrupt):
        serve(groups, given.port, browser=not given.no_browser)


def arguments_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called("show"),
        description=as_called(str(__doc__), "show"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", help="run folders and packed folders")
    parser.add_argument(
        "--port", type=int, help="of the page (default: 8501, or the next that is free)"
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address, and no more")
    return parser


if __name__ == "__main__":
    with while_somebody_reads():
        main()
