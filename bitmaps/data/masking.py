"""Which word pieces are masked, and by what: Devlin et al. 2019, section 3.1 and appendix C.2.

Fifteen in a hundred of the pieces, [CLS], [SEP] and padding apart, become targets. Of those, 80 % are replaced by [MASK],
10 % by a random piece that is not special, and 10 % stay. [UNK] may be a target, as in the blog post.

The draws are made from ``numpy.random.RandomState``, the one generator whose stream numpy has frozen: the same masks on
every machine, for good.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bitmaps.metrics import IGNORE

TARGETS, MASKED, RANDOM = 0.15, 0.8, 0.1


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What masking needs to know of a tokenizer."""

    mask: int
    pad: int
    unknown: int
    untouched: tuple[int, ...]  # [CLS] and [SEP]
    replacements: np.ndarray  # every piece that is not special

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        special = set(tokenizer.all_special_ids)
        return cls(
            mask=tokenizer.mask_token_id,
            pad=tokenizer.pad_token_id,
            unknown=tokenizer.unk_token_id,
            untouched=(tokenizer.cls_token_id, tokenizer.sep_token_id),
            replacements=np.array([i for i in range(len(tokenizer)) if i not in special]),
        )


def mask_sentence(
    ids: np.ndarray, seed: list[int], vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """Mask one sentence: (length,) ids -> (length,) ids with some replaced, and (length,) labels, ``IGNORE`` elsewhere.

    The result depends on the ids and ``seed`` alone (a list of numbers, such as the mask seed and the sentence's number).
    """
    generator = np.random.RandomState(seed)
    target, kind = generator.random_sample((2, len(ids)))
    replacement = generator.randint(len(vocabulary.replacements), size=len(ids))
    chosen = (target < TARGETS) & ~np.isin(ids, vocabulary.untouched)
    masked = chosen & (kind < MASKED)
    random = chosen & (kind >= MASKED) & (kind < MASKED + RANDOM)
    inputs = ids.copy()
    inputs[masked] = vocabulary.mask
    inputs[random] = vocabulary.replacements[replacement[random]]
    return inputs, np.where(chosen, ids, IGNORE)


def mask_more(
    input_ids: Tensor,
    targets: Tensor,
    share: float,
    vocabulary: Vocabulary,
    seed: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """A batch with a ``share`` of its other tokens masked too, special ones apart, and which tokens
    are masked or targets then; (batch, length) each. The draw depends on ``seed`` alone."""
    state = int(np.random.SeedSequence(seed).generate_state(1)[0])
    draw = torch.rand(input_ids.shape, generator=torch.Generator().manual_seed(state))
    special = torch.tensor(
        [vocabulary.pad, vocabulary.mask, *vocabulary.untouched], device=input_ids.device
    )
    chosen = (draw.to(input_ids.device) < share) & ~targets & ~torch.isin(input_ids, special)
    return input_ids.masked_fill(chosen, vocabulary.mask), targets | chosen
