"""From a model to a row of the table: its scores, its time and its size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from bitmaps.bert import Bert
from bitmaps.command.parts import Measure
from bitmaps.data.module import MaskedSentences
from bitmaps.runs.records import (
    Facts,
    KnownScores,
    Machine,
    Row,
    Scores,
    Size,
    Timing,
    perplexity,
)
from bitmaps.scoring.measure import inference_time, memory_mib, resident_mib
from bitmaps.scoring.module import ScoredModel
from bitmaps.scoring.predictions import Predicted
from bitmaps.vocabulary import Split

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
}


@dataclass(frozen=True)
class Scored:
    """A model that was scored and measured.

    Attributes:
        row: its line of the table.
        sentence_sums: of each sentence (``bitmaps.metrics.SentenceSums``).
        predicted: for each masked token.
    """

    row: Row
    sentence_sums: Tensor
    predicted: Predicted


def score(
    model: Bert,
    facts: Facts,
    data: MaskedSentences,
    split: Split,
    measure: Measure,
    devices: dict[str, Any],
) -> Scored:
    """Score a model on a split and measure it.

    Args:
        facts: what the model is; they become part of its row.
        measure: what is timed.
        devices: arguments of ``lightning.Trainer``, such as ``accelerator`` and ``precision``.

    Raises:
        FloatingPointError: when the model makes NaN or infinite logits, naming the first module
            that does.
    """
    # in fp32 whatever is timed: bf16 rounds close logits to ties, which count against a model
    scorer = Trainer(**devices | {"precision": "32-true"}, **QUIET, use_distributed_sampler=False)
    module = ScoredModel(model, sentences=data.count(split))
    run = scorer.test if split is Split.test else scorer.validate
    run(module, datamodule=data, verbose=False)
    assert module.sentence_sums is not None
    assert module.predicted is not None
    timer = Trainer(**devices, **QUIET)
    device = timer.strategy.root_device
    model.to(device)
    with timer.precision_plugin.forward_context():
        timing = timing_of(model, measure)
    row = Row(
        facts=facts,
        scores=scores_of(module.results),
        known=known_scores_of(module.results),
        timing=timing,
        size=Size(memory_mib(model), resident_mib(model)),
        machine=Machine(device_name(device), torch.get_num_threads(), str(timer.precision)),
    )
    return Scored(row, module.sentence_sums, module.predicted)


def scores_of(results: dict[str, float]) -> Scores:
    return Scores(
        cross_entropy=results["cross_entropy"],
        accuracy=results["accuracy"],
        mrr=results["mrr"],
        perplexity=perplexity(results["cross_entropy"]),
        masked_tokens=int(results["masked_tokens"]),
    )


def known_scores_of(results: dict[str, float]) -> KnownScores:
    if not results["known_tokens"]:
        return KnownScores(masked_tokens=0)
    return KnownScores(
        cross_entropy=results["known_cross_entropy"],
        accuracy=results["known_accuracy"],
        mrr=results["known_mrr"],
        masked_tokens=int(results["known_tokens"]),
    )


def timing_of(model: Bert, measure: Measure) -> Timing:
    if not measure.repeats:
        return Timing()
    full, at_masks = (inference_time(model, measure, masked_only=only) for only in (False, True))
    return Timing(
        inference_ms=full.inference_ms,
        inference_masked_ms=at_masks.inference_ms,
        inference_repeats=full.repeats,
        inference_batch=measure.batch_size,
        inference_length=measure.length,
    )


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
