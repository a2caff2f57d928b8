"""Train the adapter that gives MiniLM, a sentence encoder, a masked-language-model head.

    python -m bitmaps.adapters adapter.safetensors

MiniLM comes from the package index as a body that was tuned for sentence similarity, without a
head. The adapter makes it an honest baseline with 0.87 million trained parameters:

- factors of rank 16 beside every encoder matrix (Hu et al. 2021);
- the LayerNorms, the biases and the head.

All else is frozen. The text is the train split of data=wiki. A stopped training continues where it
was when you repeat the command.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from bitmaps.adapters.training import Settings, train
from bitmaps.errors import InputError, refuse


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bitmaps.adapters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("output", type=Path, help="the file to write; the state of the training is in <name>.ckpt")
    add("--steps", type=int, default=3600, help="optimizer steps (default: 3600)")
    add("--batch-size", type=int, default=40, help="sentences per step (default: 40)")
    add("--lr", type=float, default=1.5e-3, help="peak learning rate (default: 0.0015)")
    add("--seed", type=int, default=0, help="of parameters, batches and masks (default: 0)")
    arguments = parser.parse_args()
    output: Path = arguments.output
    if output.exists():
        parser.error(f"{output} exists already; valid is a new file")
    if not output.parent.is_dir():
        parser.error(f"{output}: there is no folder {output.parent}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = Settings(arguments.steps, arguments.batch_size, arguments.lr, arguments.seed)
    try:
        train(output, settings)
    except InputError as error:
        refuse(error)


if __name__ == "__main__":
    main()
