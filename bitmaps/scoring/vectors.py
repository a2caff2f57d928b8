"""How close the vectors of a sentence encoder are to those of the original, and to judgements."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from torchmetrics.utilities import dim_zero_cat

from bitmaps.bert import Bert
from bitmaps.data.batches import Batch
from bitmaps.scoring.module import Scored

NEIGHBOURS = 10
BLOCK = 1024  # sentences whose neighbours are looked for at once


def neighbours(vectors: Tensor, count: int) -> Tensor:
    """The ``count`` sentences with the greatest cosine to each: (n, hidden) -> (n, count)."""
    unit = F.normalize(vectors, dim=-1)
    found = []
    for start in range(0, len(unit), BLOCK):
        cosines = unit[start : start + BLOCK] @ unit.mT
        own = torch.arange(start, start + len(cosines), device=unit.device)
        cosines[torch.arange(len(cosines), device=unit.device), own] = -torch.inf
        found.append(cosines.topk(count).indices)
    return torch.cat(found)


class Agreement(Metric):
    """How well the vectors of a model agree with those of the original.

    ``compute`` gives two means over n sentences: the cosine between the two vectors of a sentence;
    and the recall at 10, the share of its 10 nearest neighbours by the original that are among its
    10 nearest by the model. Neighbours are other sentences with the greatest cosine. Of fewer than
    11 sentences all others are neighbours.
    """

    full_state_update = False
    is_differentiable = False
    vectors: list[Tensor]
    originals: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("vectors", [], dist_reduce_fx="cat")
        self.add_state("originals", [], dist_reduce_fx="cat")

    def update(self, vectors: Tensor, originals: Tensor) -> None:
        """Shapes: (n, hidden) both.

        Raises:
            FloatingPointError: when a number is NaN or infinite.
        """
        if not (vectors.isfinite().all() and originals.isfinite().all()):
            raise FloatingPointError("a vector that holds NaN or infinity")
        self.vectors.append(vectors.float())
        self.originals.append(originals.float())

    def compute(self) -> tuple[Tensor, Tensor]:
        ours, theirs = dim_zero_cat(self.vectors), dim_zero_cat(self.originals)
        cosine = F.cosine_similarity(ours, theirs, dim=-1).mean()
        count = min(NEIGHBOURS, len(ours) - 1)
        if count < 1:
            return cosine, torch.tensor(torch.nan)
        found, wanted = neighbours(ours, count), neighbours(theirs, count)
        shared = (found[:, :, None] == wanted[:, None, :]).any(-1)
        return cosine, shared.float().mean()


class ScoredVectors(Scored):
    """Scores a sentence encoder against the original.

    Args:
        model: what is scored.
        originals: the original's vectors of all sentences of the split, (n, hidden); ``None`` where
            there is no original.

    Attributes:
        results: ``cosine`` and ``recall_at_10``; nothing without an original.
    """

    shown = ("cosine", "recall_at_10")

    def __init__(self, model: Bert, originals: Tensor | None) -> None:
        super().__init__(model)
        self.originals = (originals,)  # no buffer, which would be saved
        self.agreement = Agreement()

    def update(self, batch: Batch) -> None:
        vectors = self.model(batch["input_ids"], batch["attention_mask"])
        (originals,) = self.originals
        if originals is not None:
            theirs = originals[batch["sentences"].cpu()].to(vectors.device)
            self.agreement.update(vectors, theirs)

    def compute_results(self) -> dict[str, float]:
        if self.originals == (None,):
            return {}
        cosine, recall = self.agreement.compute()
        self.agreement.reset()
        return {"cosine": cosine.item(), "recall_at_10": recall.item()}


def correlations(cosines: Tensor, scores: Tensor) -> tuple[float, float]:
    """Spearman's and Pearson's correlation of cosines with judgements, times 100; NaN where all of
    either are equal."""
    if any(bool((values == values[0]).all()) for values in (cosines, scores)):
        return math.nan, math.nan
    return (
        100 * spearman_corrcoef(cosines.double(), scores.double()).item(),
        100 * pearson_corrcoef(cosines.double(), scores.double()).item(),
    )
