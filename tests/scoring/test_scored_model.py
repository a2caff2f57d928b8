"""A model that Lightning scores: its scores, what each sentence adds up to, and NaN."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from scoring.examples import (
    UNKNOWN,
    Sentences,
    array,
    batch,
    of_lightning,
    poison,
    softmax,
    tiny,
    trainer,
)

from bitmaps.bert import Bert
from bitmaps.data.batches import Batch
from bitmaps.scoring.module import ScoredModel, first_nonfinite_module

pytestmark = of_lightning


def by_hand(
    model: Bert, batches: Iterable[Batch]
) -> Iterator[tuple[int, bool, float, bool, float]]:
    """Of each target in float64: the number of its sentence, whether it is known, its cross entropy, whether it is hit, and the
    reciprocal of its rank."""
    for data in batches:
        with torch.no_grad():
            chances = softmax(array(model(data["input_ids"], data["attention_mask"])))
        for i, j in np.argwhere(data["labels"].numpy() != -100):
            label, row = int(data["labels"][i, j]), chances[i, j]
            rank = int((row >= row[label]).sum())
            reciprocal = 1 / rank if rank <= 32 else 0.0
            yield (
                int(data["sentences"][i]),
                label != UNKNOWN,
                -np.log(row[label]),
                row.argmax() == label,
                reciprocal,
            )


SCORES = ("cross_entropy", "accuracy", "mrr")
UNKNOWNS = {
    ("one", "one"): 2,
    ("none", "none"): 0,
    ("none", "one"): 1,
    ("all", "none"): 22,
    ("all", "all"): 31,
}


@pytest.mark.parametrize("run", ["validate", "test"])
@pytest.mark.parametrize("unknown", UNKNOWNS)
def test_a_model_is_scored_with_and_without_unknown_targets(
    run: str, unknown: tuple[str, str]
) -> None:
    data, module = Sentences(*unknown), ScoredModel(tiny())
    getattr(trainer(), run)(module, datamodule=data, verbose=False)
    targets = list(by_hand(module.model, data.scored))
    known = [target for target in targets if target[1]]
    assert len(targets) == len(known) + UNKNOWNS[unknown]
    assert (module.results["masked_tokens"], module.results["known_tokens"]) == (
        len(targets),
        len(known),
    )
    everything = np.mean([target[2:] for target in targets], axis=0)
    assert [module.results[name] for name in SCORES] == pytest.approx(everything, rel=1e-5)
    if known:
        expected = np.mean([target[2:] for target in known], axis=0)
        assert [module.results[f"known_{name}"] for name in SCORES] == pytest.approx(
            expected, rel=1e-5
        )
    else:  # no number that looks well
        assert unknown == ("all", "all")
        assert not any(f"known_{name}" in module.results for name in SCORES)


def test_without_unknown_targets_the_known_scores_are_the_scores() -> None:
    module = ScoredModel(tiny())
    trainer().validate(module, datamodule=Sentences("none", "none"), verbose=False)
    assert all(module.results[f"known_{name}"] == module.results[name] for name in SCORES)


@pytest.mark.parametrize("run", ["validate", "test"])
def test_a_model_leaves_the_sums_of_each_sentence(run: str) -> None:
    data, module = (
        Sentences(),
        ScoredModel(tiny(), sentences=12),
    )  # one more than has masked tokens
    getattr(trainer(), run)(module, datamodule=data, verbose=False)
    expected = np.zeros((12, 4))
    for number, _, *scores in by_hand(module.model, data.scored):
        expected[number] += [1, *scores]
    assert module.sentence_sums is not None
    assert module.sentence_sums.dtype == torch.float64
    np.testing.assert_allclose(module.sentence_sums, expected, rtol=1e-5)
    counts, *sums = module.sentence_sums.sum(0).tolist()
    assert counts == module.results["masked_tokens"]
    assert [total / counts for total in sums] == pytest.approx(
        [module.results[name] for name in SCORES], rel=1e-9
    )


@pytest.mark.parametrize("run", ["validate", "test"])
def test_a_model_leaves_what_it_predicts_for_each_masked_token(run: str) -> None:
    data, module = Sentences(), ScoredModel(tiny(), sentences=11)
    getattr(trainer(), run)(module, datamodule=data, verbose=False)
    masked = [one["labels"] != -100 for one in data.scored]
    inputs = [one["input_ids"][kept] for one, kept in zip(data.scored, masked, strict=True)]
    labels = [one["labels"][kept] for one, kept in zip(data.scored, masked, strict=True)]
    found = module.predicted
    assert found is not None
    assert found.inputs.tolist() == torch.cat(inputs).tolist()
    assert found.labels.tolist() == torch.cat(labels).tolist()
    assert found.hits.tolist() == [hit for *_, hit, _ in by_hand(module.model, data.scored)]
    assert found.hits.mean() == pytest.approx(module.results["accuracy"])


def test_no_sums_are_kept_unless_the_sentences_are_counted() -> None:
    module = ScoredModel(tiny())
    trainer().validate(module, datamodule=Sentences(), verbose=False)
    assert module.sentence_sums is None
    assert module.predicted is None


@pytest.mark.parametrize("sentences", [0, 11])
def test_scoring_again_forgets_what_was_scored_before(sentences: int) -> None:
    module, results, sums = ScoredModel(tiny(), sentences=sentences), [], []
    for _ in range(2):
        trainer().validate(module, datamodule=Sentences(), verbose=False)
        results.append(module.results)
        sums.append(None if module.sentence_sums is None else module.sentence_sums.tolist())
    assert results[0] == results[1]
    assert sums[0] == sums[1]


PLANTED = {
    "embeddings.norm.bias": "embeddings.norm",
    "encoder.layers.0.attention.output.bias": "encoder.layers.0.attention.output",
    "encoder.layers.1.ffnn.expand.weight": "encoder.layers.1.ffnn.expand",
    "head.decoder.bias": "head.decoder",
}


@pytest.mark.parametrize(("parameter", "module"), PLANTED.items())
def test_the_first_module_that_makes_a_nan_is_found(parameter: str, module: str) -> None:
    model, data = poison(tiny(), parameter), batch(0)
    found = first_nonfinite_module(model, lambda: model(data["input_ids"], data["attention_mask"]))
    assert found == module
    assert not any(part._forward_hooks for part in model.modules())


def test_no_module_is_blamed_without_reason() -> None:
    model, data = tiny(), batch(0)
    found = first_nonfinite_module(model, lambda: model(data["input_ids"], data["attention_mask"]))
    assert found not in dict(model.named_modules())


@pytest.mark.parametrize("run", ["validate", "test"])
def test_scoring_nan_weights_stops_and_names_the_module(run: str) -> None:
    module = ScoredModel(poison(tiny(), "head.transform.bias"), sentences=11)
    with pytest.raises(FloatingPointError, match=r": head\.transform$"):
        getattr(trainer(), run)(module, datamodule=Sentences(), verbose=False)
