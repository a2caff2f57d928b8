"""What a job does differently for each task: its data, what is scored, and what is learned."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bitmaps.bert import Bert
from bitmaps.command.parts import Data
from bitmaps.command.schema import Common
from bitmaps.data.batches import Example
from bitmaps.data.classified import LabeledSentences, classes_of
from bitmaps.data.labeled import LabeledSource
from bitmaps.data.module import MaskedSentences, Sentences
from bitmaps.data.plain import PlainSentences
from bitmaps.data.sources import Source
from bitmaps.data.tables import Columns, Examples, read_examples
from bitmaps.data.tokenizing import tokenizer_of
from bitmaps.embedding.vectors import embed_batches
from bitmaps.errors import InputError
from bitmaps.jobs.pretrained import Pretrained
from bitmaps.packed.format import is_packed
from bitmaps.runs.analysis import Analysis
from bitmaps.runs.records import KnownScores, Scores, perplexity
from bitmaps.scoring.classes import ScoredClasses
from bitmaps.scoring.filling import chosen_sentences, fill, sentence_of
from bitmaps.scoring.module import Scored, ScoredModel
from bitmaps.scoring.predictions import analyse
from bitmaps.scoring.vectors import NEIGHBOURS, ScoredVectors, correlations
from bitmaps.training.module import (
    MaskedLanguageModel,
    SentenceClassifier,
    SentenceEncoder,
    Trained,
)
from bitmaps.vocabulary import Split, Task


@dataclass(frozen=True)
class Found:
    """What scoring a model found.

    Attributes:
        sentence_sums, analysis: see ``ScoredRow``; ``None`` except for masked words.
    """

    scores: Scores
    known: KnownScores = field(default_factory=KnownScores)
    sentence_sums: NDArray[Any] | None = None
    analysis: Analysis | None = None


S = TypeVar("S", bound=Scored)
D = TypeVar("D", bound=Sentences)


class TaskJob(ABC, Generic[D, S]):
    """One task of a job.

    Attributes:
        data: what is trained on and scored.
    """

    data: D

    @abstractmethod
    def scorer(self, model: Bert, split: Split) -> S:
        """What scores a model on a split."""

    @abstractmethod
    def found(self, scorer: S, split: Split) -> Found:
        """The scores, once Lightning has run the scorer."""

    @abstractmethod
    def trained(self, model: Bert, teacher: Bert | None, **learning: Any) -> Trained:
        """What trains a model; the other arguments are those of ``Trained``."""


class MaskedWords(TaskJob[MaskedSentences, ScoredModel]):
    """Masked words.

    Args:
        shown: sentences that every model fills in.
    """

    def __init__(self, data: MaskedSentences, shown: Sequence[Example] = ()) -> None:
        self.data, self.shown = data, list(shown)
        self.tokenizer = tokenizer_of(data.tokenizer_folder)

    @classmethod
    def of(cls, config: Common, pretrained: Pretrained, splits: set[str]) -> MaskedWords:
        """What a configuration asks for; the user's own sentence is shown first."""
        folder, chosen = str(pretrained.folder), config.data
        data = MaskedSentences(
            text_source(chosen),
            folder,
            mask_seed=config.mask_seed,
            mask_sets=config.mask_sets,
            length=chosen.length,
            **sizes(config),
        )
        positions = pretrained.shape.max_position_embeddings
        own = config.text
        shown = [] if own is None else [sentence_of(own, tokenizer_of(folder), positions)]
        for split in splits:
            data.read(split)
        return cls(data, shown + chosen_sentences(data.examples(chosen.split), config.mask_seed))

    def scorer(self, model: Bert, split: Split) -> ScoredModel:
        return ScoredModel(model, sentences=self.data.count(split))

    def found(self, scorer: ScoredModel, split: Split) -> Found:
        assert scorer.sentence_sums is not None
        assert scorer.predicted is not None
        results = scorer.results
        analysis = analyse(
            scorer.predicted,
            self.tokenizer,
            self.data.occurrences(split),
            fill(scorer.model, self.shown, self.tokenizer),
        )
        scores = Scores(
            cross_entropy=results["cross_entropy"],
            accuracy=results["accuracy"],
            mrr=results["mrr"],
            perplexity=perplexity(results["cross_entropy"]),
            masked_tokens=int(results["masked_tokens"]),
            guessing=math.log(scorer.model.config.vocab_size),
        )
        return Found(scores, known_scores(results), scorer.sentence_sums.cpu().numpy(), analysis)

    def trained(self, model: Bert, teacher: Bert | None, **learning: Any) -> Trained:
        return MaskedLanguageModel(model, teacher, **learning)


class SentenceVectors(TaskJob[PlainSentences, ScoredVectors]):
    """Attributes:
    judged: pairs of sentences with the scores that people gave them, if there are some.
    """

    def __init__(self, config: Common, pretrained: Pretrained, splits: set[str]) -> None:
        shape, data = pretrained.shape, config.data
        self.pretrained = pretrained
        self.data = PlainSentences(
            text_source(data),
            str(pretrained.folder),
            length=data.length,
            cropped=data.cropped,
            scored_length=shape.longest_sentence,
            **sizes(config),
        )
        for split in splits:
            self.data.read(split)
        if len(self.data.tokenized(data.split)) < 2:
            raise InputError(
                f"{self.data.source.place(data.split)} has one sentence, which has no neighbours; "
                "valid are two or more"
            )
        self.judged = None if config.similarity is None else judged_pairs(config.similarity)
        if is_packed(pretrained.folder) and self.judged is None:
            raise InputError(
                f"there is no run beside {pretrained.folder} whose vectors it could be compared "
                "with: valid is similarity=<file with sentence1, sentence2 and score>"
            )
        self._originals: dict[str, Tensor] = {}

    def originals(self, split: str) -> Tensor | None:
        """The vectors of the original model, (sentences, hidden); ``None`` for a packed folder
        without its run."""
        if is_packed(self.pretrained.folder):
            return None
        if split not in self._originals:
            self._originals[split] = embed_batches(self.pretrained.load(), self.data.batches(split))
        return self._originals[split]

    def scorer(self, model: Bert, split: Split) -> ScoredVectors:
        return ScoredVectors(model, self.originals(split))

    def found(self, scorer: ScoredVectors, split: Split) -> Found:
        results = scorer.results
        judged: dict[str, Any] = {}
        if self.judged is not None:
            first, second = (
                embed_batches(scorer.model, self.data.batches_of(texts))
                for texts in (self.judged.first, self.judged.second or [])
            )
            scores = Tensor(self.judged.scores)
            cosines = F.cosine_similarity(first, second, dim=-1)
            found = map(defined, correlations(cosines, scores))
            judged = dict(zip(("spearman", "pearson"), found, strict=True))
        sentences = len(self.data.tokenized(split))
        return Found(
            Scores(
                cosine=results.get("cosine"),
                recall_at_10=results.get("recall_at_10"),
                sentences=sentences,
                guessing=0.0 if judged else min(NEIGHBOURS / (sentences - 1), 1.0),
                **judged,
            )
        )

    def trained(self, model: Bert, teacher: Bert | None, **learning: Any) -> Trained:
        originals = self.originals(Split.validation)
        return SentenceEncoder(model, teacher, originals=originals, **learning)


class SentenceClasses(TaskJob[LabeledSentences, ScoredClasses]):
    """Labeled sentences, or pairs of them."""

    def __init__(self, config: Common, pretrained: Pretrained, splits: set[str]) -> None:
        data, source = config.data, labeled_source(config.data)
        self.data = LabeledSentences(
            source,
            str(pretrained.folder),
            labels=pretrained.labels_for(classes_of(source)),
            length=data.length,
            **sizes(config),
        )
        for split in splits:
            self.data.read(split)

    def scorer(self, model: Bert, split: Split) -> ScoredClasses:
        return ScoredClasses(model)

    def found(self, scorer: ScoredClasses, split: Split) -> Found:
        results: dict[str, Any] = {n: defined(value) for n, value in scorer.results.items()}
        loss, sentences = results.pop("loss"), int(results.pop("sentences"))
        del results["score"]  # which is one of the others
        results["guessing"] = 0.0  # of a correlation
        if self.data.labels:
            results["cross_entropy"] = loss
            counts = Counter(self.data.classified(split).targets.tolist())
            results["guessing"] = max(counts.values()) / counts.total()
        return Found(Scores(sentences=sentences, **results))

    def trained(self, model: Bert, teacher: Bert | None, **learning: Any) -> Trained:
        return SentenceClassifier(model, teacher, **learning)


JOBS: dict[Task, Callable[[Common, Pretrained, set[str]], TaskJob[Any, Any]]] = {
    Task.masked_lm: MaskedWords.of,
    Task.sentence_embedding: SentenceVectors,
    Task.classification: SentenceClasses,
}


def text_source(data: Data) -> Source:
    return Source(data.name, data.dir, data.path, data.configuration, data.column, data.streaming)


def labeled_source(data: Data) -> LabeledSource:
    columns = Columns(**asdict(data.columns))
    return LabeledSource(data.name, data.dir, data.configuration, columns)


def source_of(config: Common) -> Source | LabeledSource:
    """Where the sentences come from."""
    labeled = config.task is Task.classification
    return labeled_source(config.data) if labeled else text_source(config.data)


def sizes(config: Common) -> dict[str, Any]:
    """The settings that the data of every task take."""
    return {
        "batch_size": config.data.batch_size,
        "eval_batch_size": config.data.eval_batch_size,
        "limit": config.limit,
        "seed": config.seed,
    }


def judged_pairs(path: str) -> Examples:
    """Raises:
    InputError: when the file is missing, or has no pairs with scores."""
    if not (file := Path(path).expanduser()).is_file():
        raise InputError(f"similarity={path} is no file")
    return read_examples(file, scored_pairs=True)


def defined(value: float) -> float | None:
    """A number, or ``None`` for the NaN of a correlation with what is always the same."""
    return None if math.isnan(value) else value


def known_scores(results: dict[str, float]) -> KnownScores:
    """The scores without the targets that the tokenizer does not know."""
    if not results["known_tokens"]:
        return KnownScores(masked_tokens=0)
    return KnownScores(
        cross_entropy=results["known_cross_entropy"],
        accuracy=results["known_accuracy"],
        mrr=results["known_mrr"],
        masked_tokens=int(results["known_tokens"]),
    )
