"""Save the comparison of runs as a workspace of Weights & Biases.

python -m bitmaps.dashboard <entity>/<project>
"""

from __future__ import annotations

import argparse
import re

import wandb
from wandb.sdk.lib.service.service_connection import WandbApiFailedError

from bitmaps.calling import as_called, called
from bitmaps.errors import InputError, refuse
from bitmaps.tracking import workspace


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=called("dashboard"),
        description=as_called(str(__doc__), "dashboard"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "project", metavar="<entity>/<project>", help="the project of the runs, as in its address"
    )
    given = parser.parse_args().project
    try:
        if not (names := re.fullmatch(r"([\w.-]+)/([\w.-]+)", given)):
            raise InputError(
                f"{given!r} is no project: valid is <entity>/<project>, as in its address at W&B"
            )
        print(workspace.save(*names.groups()).url)
    except (wandb.Error, WandbApiFailedError) as error:
        refuse(InputError(f"W&B: {error}"))
    except InputError as error:
        refuse(error)


if __name__ == "__main__":
    main()
