"""From a model to a row of the table: its scores, its time and its size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from bitmaps.bert import Bert
from bitmaps.command.schema import Measure
from bitmaps.data.module import MaskedSentences
from bitmaps.runs.folder import SCORES, Row, perplexity
from bitmaps.scoring.measure import inference_time, memory_mib, resident_mib
from bitmaps.scoring.predictions import Predicted
from bitmaps.training.module import MaskedLanguageModel


@dataclass(frozen=True)
class Evaluated:
    """How a model came out.

    Attributes:
        row: cross_entropy (nats), perplexity, accuracy, mrr and masked_tokens; the same without [UNK] targets as ``known``;
            inference_ms and inference_masked_ms a sequence, medians of inference_repeats batches of inference_batch sequences
            of inference_length tokens; memory_mib (pseudo) and resident_mib; device, threads and the dtype that was timed
            (scores are in fp32).
        sentence_sums: of each sentence (``SentenceSums``).
        predicted: for each masked token.
    """

    row: Row
    sentence_sums: Tensor
    predicted: Predicted


def evaluate(
    model: Bert, data: MaskedSentences, split: str, timed: Measure, devices: dict[str, Any]
) -> Evaluated:
    """Score a model on a split and measure it.

    Args:
        split: ``validation`` or ``test``.
        devices: arguments of ``lightning.Trainer`` that say where, such as accelerator and precision.

    Raises:
        FloatingPointError: when the model makes NaN or infinite logits, naming the module that made them first.
    """
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    # in fp32 whatever is timed: bf16 rounds neighbouring logits to ties, which count against a model
    scorer = Trainer(**devices | {"precision": "32-true"}, **quiet, use_distributed_sampler=False)
    module = MaskedLanguageModel(model, sentences=data.count(split))
    run = scorer.test if split == "test" else scorer.validate
    run(module, datamodule=data, verbose=False)
    results = module.results
    assert module.sentence_sums is not None
    assert module.predicted is not None
    timer = Trainer(**devices, **quiet)
    model.to(timer.strategy.root_device)
    full, at_masks = None, None
    if timed.repeats:
        with timer.precision_plugin.forward_context():
            full = inference_time(model, timed)
            at_masks = inference_time(model, timed, masked_only=True)
    row = {
        "cross_entropy": results["cross_entropy"],
        "perplexity": perplexity(results["cross_entropy"]),
        "accuracy": results["accuracy"],
        "mrr": results["mrr"],
        "masked_tokens": int(results["masked_tokens"]),
        "known": {
            # null where every masked token is unknown
            **{
                name: results[f"known_{name}"] if results["known_tokens"] else None
                for name in SCORES
            },
            "masked_tokens": int(results["known_tokens"]),
        },
        "inference_ms": full and full.inference_ms,
        "inference_masked_ms": at_masks and at_masks.inference_ms,
        "inference_repeats": full and full.repeats,
        "inference_batch": full and timed.batch_size,
        "inference_length": full and timed.length,
        "memory_mib": memory_mib(model),
        "resident_mib": resident_mib(model),
        "device": device_name(timer.strategy.root_device),
        "threads": torch.get_num_threads(),
        "dtype": str(timer.precision),
    }
    return Evaluated(row, module.sentence_sums, module.predicted)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
