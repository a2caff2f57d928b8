"""What a binarized model learns from: the true tokens, and the states of its teacher."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bitmaps.bert import Bert
from bitmaps.bert.encoder import Layer

TEMPERATURE = 0.05  # of the similarities of sentences


@dataclass(frozen=True)
class LossWeights:
    """The weight of each part of the loss. Every part but the first distils from a teacher; the
    teacher does not run where all of those weigh 0.

    Attributes:
        cross_entropy: of the true tokens.
        logits: KL(teacher || student) of the predictions. Its gradient is that of a soft cross
            entropy.
        hidden: mean squared error of the hidden states, averaged over the output of the embeddings
            and of every layer.
        directions: the same between hidden states of unit length (Xu et al. 2024, OneBit,
            equation 12).
        attention: mean squared error of the attention scores q k^T / sqrt(d) (Bai et al. 2021,
            BinaryBERT, section 3.2).
        relations: squared distance between the directions of q q^T, k k^T and v v^T (Qin et al.
            2022, BiBERT, section 3.3).
        vectors: 1 - cosine between the vectors of sentences.

    The predictions of a sentence encoder are the similarities within a batch: the cosines of a
    sentence to all others, divided by ``TEMPERATURE``. Those of a model with one output, a score,
    have the mean squared error in place of the divergence.
    """

    cross_entropy: float = 1.0
    logits: float = 0.0
    hidden: float = 0.0
    directions: float = 0.0
    attention: float = 0.0
    relations: float = 0.0
    vectors: float = 0.0

    @property
    def distill(self) -> bool:
        return any(weight for name, weight in asdict(self).items() if name != "cross_entropy")

    @property
    def of_projections(self) -> bool:
        """Whether a part needs queries, keys and values."""
        return bool(self.attention or self.relations)


@dataclass(frozen=True)
class Forward:
    """What one model makes of a batch.

    Attributes:
        states: the hidden states, layers + 1 of (batch, length, hidden).
        logits: what is predicted: (n, vocabulary) at the n masked tokens, (batch, batch - 1) for
            the similarities of sentences, or (batch, classes).
        projections: queries, keys and values of each layer in turn, (batch, heads, length, d), if
            they were asked for.
        vectors: (batch, hidden), of a sentence encoder.
    """

    states: list[Tensor]
    logits: Tensor
    projections: list[Tensor]
    vectors: Tensor | None = None


def run(
    model: Bert, input_ids: Tensor, attention_mask: Tensor, masked: Tensor, project: bool
) -> Forward:
    """Run a model on a batch.

    Args:
        masked: (batch, length), where logits are wanted.
        project: whether queries, keys and values are wanted.
    """
    with projections(model, project) as projected:
        states = model.encode(input_ids, attention_mask)
    return Forward(states, model.head(states[-1][masked]), projected)


def run_vectors(model: Bert, input_ids: Tensor, attention_mask: Tensor, project: bool) -> Forward:
    """Run a sentence encoder on a batch; arguments as for ``run``."""
    with projections(model, project) as projected:
        states = model.encode(input_ids, attention_mask)
    vectors = model.head(states[-1].float(), attention_mask)
    return Forward(states, similarities(vectors), projected, vectors)


def similarities(vectors: Tensor) -> Tensor:
    """The cosines of each of n sentences to the n - 1 others, divided by ``TEMPERATURE``: (n,
    hidden) -> (n, n - 1)."""
    unit = F.normalize(vectors, dim=-1)
    others = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return (unit @ unit.mT / TEMPERATURE)[others].unflatten(0, (len(unit), -1))


def run_classes(
    model: Bert, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, project: bool
) -> Forward:
    """Run a classifier on a batch; arguments as for ``run``."""
    with projections(model, project) as projected:
        states = model.encode(input_ids, attention_mask, token_type_ids)
    return Forward(states, model.head(states[-1]), projected)


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) in nats, summed over the v choices and averaged over the n
    predictions; (n, v), (n, v) -> (). It is 0 where nothing is predicted. Between scores, (n, 1),
    it is the mean squared error."""
    if student.shape[-1] == 1:
        return F.mse_loss(student.float(), teacher.float())
    teacher_log = F.log_softmax(teacher.float(), -1)
    student_log = F.log_softmax(student.float(), -1)
    total = F.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
    return total / max(1, len(student))


def hidden_error(student: list[Tensor], teacher: list[Tensor], kept: Tensor) -> Tensor:
    """Mean squared error between hidden states (batch, length, hidden), over all states and over
    the tokens that ``kept`` (batch, length) marks."""
    pairs = zip(student, teacher, strict=True)
    return torch.stack([F.mse_loss(s[kept].float(), t[kept].float()) for s, t in pairs]).mean()


def direction_error(student: list[Tensor], teacher: list[Tensor], kept: Tensor) -> Tensor:
    """Squared distance of hidden states as unit vectors, 2 - 2 cos, averaged over tokens and
    states. Shapes as in ``hidden_error``."""
    pairs = zip(student, teacher, strict=True)
    cosines = [F.cosine_similarity(s[kept].float(), t[kept].float(), dim=-1) for s, t in pairs]
    return torch.stack([2 - 2 * cosine for cosine in cosines]).mean()


def attention_error(student: list[Tensor], teacher: list[Tensor], kept: Tensor) -> Tensor:
    """Mean squared error of the attention scores between tokens of one sentence.

    Both lists hold the queries, keys and values of each layer in turn: (batch, heads, length, d).
    """
    pairs = kept[:, None, :, None] & kept[:, None, None, :]
    pairs = pairs.expand(-1, student[0].shape[1], -1, -1)
    errors = []
    with torch.autocast(kept.device.type, enabled=False):
        for layer in range(0, len(student), 3):
            ours, theirs = (
                x[layer].float() @ x[layer + 1].float().mT / math.sqrt(x[layer].shape[-1])
                for x in (student, teacher)
            )
            errors.append(F.mse_loss(ours[pairs], theirs[pairs]))
    return torch.stack(errors).mean()


def relation_error(student: list[Tensor], teacher: list[Tensor], kept: Tensor) -> Tensor:
    """The squared distance of P = x x^T / ||x x^T|| of student and teacher, for the x (length, d)
    of a head, averaged over sentences, heads, layers, and queries, keys and values.

    Lists as in ``attention_error``; padding is left out.
    """
    errors = []
    with torch.autocast(kept.device.type, enabled=False):
        for pair in zip(student, teacher, strict=True):
            ours, theirs = (x.float() * kept[:, None, :, None] for x in pair)
            ours, theirs = (F.normalize((x @ x.mT).flatten(-2), dim=-1) for x in (ours, theirs))
            errors.append((ours - theirs).square().sum(-1).mean())
    return torch.stack(errors).mean()


def distances(
    student: Forward, teacher: Forward, tokens: Tensor, loss: LossWeights
) -> dict[str, Tensor]:
    """The parts of the loss that distil and weigh something, by their names. The distance of the
    hidden states is there for the curves even if it weighs nothing.

    Args:
        tokens: (batch, length), false at padding.
    """
    parts = {}
    if loss.logits:
        parts["logits"] = distillation(student.logits, teacher.logits)
    parts["hidden"] = hidden_error(student.states, teacher.states, tokens)
    if loss.directions:
        parts["directions"] = direction_error(student.states, teacher.states, tokens)
    if loss.attention:
        parts["attention"] = attention_error(student.projections, teacher.projections, tokens)
    if loss.relations:
        parts["relations"] = relation_error(student.projections, teacher.projections, tokens)
    if loss.vectors and student.vectors is not None and teacher.vectors is not None:
        cosines = F.cosine_similarity(student.vectors, teacher.vectors, dim=-1)
        parts["vectors"] = (1 - cosines).mean()
    return parts


@contextmanager
def projections(model: Bert, wanted: bool) -> Iterator[list[Tensor]]:
    """The queries, keys and values of each layer in turn, split into heads, as the model runs; an
    empty list unless ``wanted``."""
    captured: list[Tensor] = []
    handles = []
    for layer in cast("list[Layer]", list(model.encoder.layers)) if wanted else ():
        heads = layer.attention.split_heads
        for linear in (layer.attention.query, layer.attention.key, layer.attention.value):
            handles.append(
                linear.register_forward_hook(
                    lambda _m, _i, out, heads=heads: captured.append(heads(out))
                )
            )
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()
