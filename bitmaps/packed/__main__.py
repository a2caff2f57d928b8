"""Pack a trained run, turn a packed model into floats or ONNX, or list the kernels that run here.

    python -m bitmaps.packed <run folder> [<folder>] [--embeddings fp32] [--head int8]
    python -m bitmaps.packed <run or packed folder> --onnx <file>
    python -m bitmaps.packed to_float <packed folder> <folder>
    python -m bitmaps.packed info

The folder or file to write must not exist.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf

from bitmaps.bert import checkpoint
from bitmaps.bert.finding import locate
from bitmaps.calling import as_called, called
from bitmaps.command.mistakes import found_in
from bitmaps.command.saved import FILE, load_config
from bitmaps.command.schema import Train
from bitmaps.data.tokenizing import check_fit, tokenizer_of
from bitmaps.errors import InputError, refuse, while_somebody_reads
from bitmaps.packed import format as folder
from bitmaps.packed import model as models
from bitmaps.packed.info import info
from bitmaps.packed.onnx import check_file, export_onnx
from bitmaps.report.card import write_card
from bitmaps.runs.folder import read_rows
from bitmaps.vocabulary import Act, RowKind, Storage

TABLES = Storage.int8  # of words, positions and types, unless it is said


def pack(run: Path, to: Path, embeddings: Storage, head: Storage | None) -> None:
    source = locate(str(run))
    if folder.is_packed(source):
        raise InputError(f"{source} is packed already")
    trained = (run / "rows.json").is_file()
    if trained:  # read first what the card will say, so that no folder is left without one
        rows = [row for row in read_rows(run) if row.kind is not RowKind.packed]  # another folder
        saved = load_config(run, Train)
        with found_in(run / FILE):
            config = cast(Train, OmegaConf.to_object(saved))
    tokenizer = tokenizer_of(str(source))
    model = checkpoint.load(source)
    check_fit(tokenizer, source, model.config.vocab_size)
    folder.save(model, to, tokenizer, embeddings, head)
    if trained:
        write_card(to, rows, config.model, config.data)
    before = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    after = (to / folder.FILE).stat().st_size
    print(f"{to}: {after / 2**20:.2f} MiB, 1/{before / after:.1f} of {source}")


def to_onnx(path: Path, file: Path, embeddings: Storage | None, head: Storage | None) -> None:
    check_file(file)
    source = locate(str(path))
    if not folder.is_packed(source):
        floats = checkpoint.load(source)
        parts = folder.pack_model(floats, embeddings or TABLES, head)
        model = models.assemble(floats.config, parts, Act.f32)
    elif embeddings or head:
        raise InputError(f"{source} is packed already, so it takes neither --embeddings nor --head")
    else:
        model = folder.load(source, Act.f32)
    difference = export_onnx(model, file)
    print(
        f"{file}: {file.stat().st_size / 2**20:.2f} MiB; ONNX Runtime's outputs differ from the "
        f"packed model's by at most {difference:.1e}"
    )


def to_float(packed: Path, to: Path) -> None:
    if not folder.is_packed(packed):
        raise InputError(f"{packed} is not a packed folder")
    if to.exists():
        raise InputError(f"{to} exists already: choose another folder")
    tokenizer = tokenizer_of(str(packed))
    model = models.to_float(folder.load(packed, Act.f32))
    try:
        to.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{to} cannot be made: {error}") from error
    checkpoint.save(model, to)
    tokenizer.save_pretrained(to)
    print(f"{to}: an ordinary checkpoint, {(to / folder.FILE).stat().st_size / 2**20:.2f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=called("pack"),
        description=as_called(str(__doc__), "pack"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", help="a run folder (or a model's), to_float, or info")
    parser.add_argument(
        "folders", nargs="*", type=Path, help="the folder to write (default: <run folder>/packed)"
    )
    parser.add_argument(
        "--embeddings",
        choices=("fp32", "fp16", "int8", "int4"),
        help="storage of the word, position and type tables that have more bits (default: int8)",
    )
    parser.add_argument("--head", choices=("fp16", "int8"), help="round the head's transform to it")
    parser.add_argument(
        "--onnx", type=Path, metavar="FILE", help="write the model as an ONNX file, and no folder"
    )
    arguments = parser.parse_args()
    what, folders = arguments.what, arguments.folders
    if what in ("info", "to_float") and (arguments.embeddings or arguments.head or arguments.onnx):
        parser.error(f"{what} takes neither --embeddings nor --head nor --onnx")
    stored = [Storage(name) if name else None for name in (arguments.embeddings, arguments.head)]
    try:
        if what == "info" and not folders:
            info()
        elif what == "to_float" and len(folders) == 2:
            to_float(*folders)
        elif arguments.onnx and not folders:
            to_onnx(Path(what), arguments.onnx, *stored)
        elif what not in ("info", "to_float") and not arguments.onnx and len(folders) <= 1:
            tables, head = stored
            to = folders[0] if folders else Path(what) / "packed"
            pack(Path(what), to, tables or TABLES, head)
        else:
            wanted = {"info": "no folder", "to_float": "two folders"}.get(
                what, "no folder beside --onnx" if arguments.onnx else "at most one more folder"
            )
            parser.error(f"{what} takes {wanted}, not {len(folders)}")
    except InputError as error:
        refuse(error)


if __name__ == "__main__":
    with while_somebody_reads():
        main()
