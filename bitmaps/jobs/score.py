"""From a model to a row of the table: its scores, its time and its size."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch
from lightning import Trainer

from bitmaps.bert import Bert
from bitmaps.command.parts import Measure
from bitmaps.jobs.tasks import TaskJob
from bitmaps.runs.folder import ScoredRow
from bitmaps.runs.provenance import processor
from bitmaps.runs.records import Facts, Machine, Row, Size, Timing
from bitmaps.scoring.measure import (
    inference_time,
    memory_mib,
    resident_mib,
    sentences_per_second,
)
from bitmaps.scoring.progress import ShowsProgress
from bitmaps.vocabulary import Split, Task

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
}


def score(
    model: Bert,
    facts: Facts,
    task: TaskJob[Any, Any],
    split: Split,
    measure: Measure,
    devices: dict[str, Any],
) -> ScoredRow:
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
    scorer = Trainer(
        **devices | {"precision": "32-true"},
        **QUIET,
        use_distributed_sampler=False,
        callbacks=[ShowsProgress(str(facts.row))],
    )
    module = task.scorer(model, split)
    run = scorer.test if split is Split.test else scorer.validate
    run(module, datamodule=task.data, verbose=False)
    timer = Trainer(**devices, **QUIET)
    device = timer.strategy.root_device
    model.to(device)
    found = task.found(module, split)
    with timer.precision_plugin.forward_context():
        timing = timing_of(model, measure)
        if facts.task is Task.sentence_embedding and measure.repeats:
            speed = sentences_per_second(model, task.data.batches(split), measure)
            timing = replace(timing, sentences_per_second=speed)
    row = Row(
        facts=facts,
        scores=found.scores,
        known=found.known,
        timing=timing,
        size=Size(memory_mib(model), resident_mib(model)),
        machine=Machine(
            device=device_name(device),
            threads=torch.get_num_threads(),
            dtype=str(timer.precision),
            processor=processor(),
            scored_at=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
    )
    return ScoredRow(row, found.sentence_sums, found.analysis)


def timing_of(model: Bert, measure: Measure) -> Timing:
    if not measure.repeats:
        return Timing()
    full, masked_ms = inference_time(model, measure), None
    if model.config.task is Task.masked_lm:
        masked_ms = inference_time(model, measure, masked_only=True).inference_ms
    return Timing(
        inference_ms=full.inference_ms,
        inference_masked_ms=masked_ms,
        inference_repeats=full.repeats,
        inference_batch=measure.batch_size,
        inference_length=measure.length,
    )


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
