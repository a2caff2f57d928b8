"""Which tokens are masked, and by what: Devlin et al. 2019, section 3.1 and appendix C.2.

15 % of the tokens become targets. Special tokens never do, even where a text contains them, except
[UNK], as in the blog post. Of the targets, 80 % are replaced by [MASK], 10 % by a random token that
is not special, and 10 % stay.

The draws of ``mask_sentence`` come from ``numpy.random.RandomState``, the generator whose stream
numpy has frozen. The masks are therefore the same on every machine and with every version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bitmaps.vocabulary import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TARGETS, MASKED, RANDOM = 0.15, 0.8, 0.1


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The token ids of a tokenizer that masking needs."""

    mask: int
    pad: int
    unknown: int
    untouched: tuple[int, ...]  # [CLS], [SEP] and every other special token but [UNK]
    replacements: np.ndarray  # every token that is not special

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        special = set(tokenizer.all_special_ids)
        return cls(
            mask=tokenizer.mask_token_id,
            pad=tokenizer.pad_token_id,
            unknown=tokenizer.unk_token_id,
            untouched=tuple(sorted(special - {tokenizer.unk_token_id})),
            replacements=np.array([i for i in range(len(tokenizer)) if i not in special]),
        )


def mask_sentence(
    ids: np.ndarray, seed: list[int], vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """Mask one sentence.

    Args:
        ids: the sentence, (length,).
        seed: integers, such as the mask seed and the number of the sentence. The masks depend on
            them and on ``ids`` alone.

    Returns:
        the ids after masking, and the labels: the original id at a target, ``IGNORE`` elsewhere.
        Both are (length,).
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
    seed_parts: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Mask a share of the non-target tokens of a training batch too.

    Special tokens stay, and so does every token that is [MASK] already. Targets stay as they are.

    Args:
        input_ids: the batch after ``mask_sentence``, (batch, length).
        targets: true at targets, (batch, length).
        share: probability of each other token to be masked, 0 to 1.
        seed_parts: integers of 0 or more, such as the seed, the number of the batch and the rank of
            the process. The draw depends on them and on the shape of the batch alone.

    Returns:
        the ids with more of them replaced by [MASK], and true where a token is a target or was
        masked here.
    """
    seed = np.random.SeedSequence(list(seed_parts)).generate_state(1)[0]
    draw = torch.rand(input_ids.shape, generator=torch.Generator().manual_seed(int(seed)))
    special = torch.tensor(
        [vocabulary.pad, vocabulary.mask, *vocabulary.untouched], device=input_ids.device
    )
    chosen = (draw.to(input_ids.device) < share) & ~targets & ~torch.isin(input_ids, special)
    return input_ids.masked_fill(chosen, vocabulary.mask), targets | chosen
