from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from show.examples import tiny_model, tiny_run
from torch import Tensor
from transformers import BertTokenizer, PreTrainedTokenizerBase

from bitmaps.errors import InputError
from bitmaps.show import answers
from bitmaps.show.answers import (
    MOST_CHARACTERS,
    Answer,
    Quantity,
    Ranked,
    classify,
    compare,
    fill_in,
    search,
)
from bitmaps.show.groups import Group, open_group
from bitmaps.vocabulary import RowKind, Task


@pytest.fixture
def words(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Group:
    return open_group(str(tiny_run(tmp_path / "words", tokenizer)))


@pytest.fixture
def vectors(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Group:
    return open_group(str(tiny_run(tmp_path / "vectors", tokenizer, Task.sentence_embedding)))


def classes(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, *labels: str) -> Group:
    return open_group(str(tiny_run(tmp_path / "run", tokenizer, Task.classification, labels)))


def only(answer: Answer, line: int = 0) -> list[Ranked]:
    """The one list of a model."""
    (found,) = answer.lines[line].lists
    return list(found)


def ids_of(group: Group, *texts: str) -> dict[str, Tensor]:
    return dict(group.tokenizer(*texts, return_tensors="pt"))


def test_the_five_most_probable_words_by_every_model(words: Group) -> None:
    answer = fill_in(words, "the cat [MASK] on the mat")
    assert [line.shown.name for line in answer.lines] == ["fp32", "naive", "trained", "packed"]
    assert answer.quantity is Quantity.probability
    for line in answer.lines:
        with torch.inference_mode():
            logits = line.shown.model(**ids_of(words, "the cat [MASK] on the mat"))[0, 3]
        best = logits.softmax(-1).sort(descending=True)
        (found,) = line.lists
        assert len(found) == 5
        for ranked, token, probability in zip(found, best.indices, best.values, strict=False):
            said = words.tokenizer.convert_ids_to_tokens(token.item()) or f"[{token}]"
            assert ranked.text == said
            assert ranked.value == pytest.approx(probability.item(), rel=1e-4)


def test_every_mask_is_filled(words: Group) -> None:
    one = fill_in(words, "[MASK] cat sat on [MASK] mat")
    assert [len(line.lists) for line in one.lines] == [2, 2, 2, 2]
    assert one.lines[0].lists[0] != one.lines[0].lists[1]


def test_a_mask_is_typed_alike_for_every_tokenizer(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["<pad>", "<unk>", "<s>", "</s>", "<mask>", "the", "cat"]))
    tokenizer = BertTokenizer(
        str(vocabulary), mask_token="<mask>", pad_token="<pad>", unk_token="<unk>", cls_token="<s>",
        sep_token="</s>",
    )  # fmt: skip
    group = open_group(str(tiny_run(tmp_path / "run", tokenizer)))
    assert only(fill_in(group, "the [MASK]")) == only(fill_in(group, "the <mask>"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the sentence is empty"),
        (" \n", "the sentence is empty"),
        ("the cat", r"the sentence has nothing to fill in: put \[MASK\] where a word is missing"),
        ("the " * 20 + "[MASK]", "the sentence has 23 pieces, more than the model's 12 positions"),
        ("x" * (MOST_CHARACTERS + 1), "20001 characters; valid are at most 20000"),
    ],
)
def test_a_sentence_that_cannot_be_filled_is_refused(words: Group, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        fill_in(words, text)


def pooled(group: Group, line: int, text: str) -> Tensor:
    """The vector of a text by its definition: the mean of its hidden states, of length 1."""
    with torch.inference_mode():
        hidden = group.models[line].model.encode(ids_of(group, text)["input_ids"])[-1][0]
    mean = hidden.mean(0)
    return mean / mean.norm()


def test_the_similarity_is_the_cosine_of_the_vectors(vectors: Group) -> None:
    answer = compare(vectors, "the cat sat on the mat", "a dog ran")
    assert answer.quantity is Quantity.similarity
    assert not answer.notes
    for number in range(4):
        (found,) = only(answer, number)
        first, second = (
            pooled(vectors, number, text) for text in ("the cat sat on the mat", "a dog ran")
        )
        assert found.text == ""
        assert found.value == pytest.approx((first @ second).item(), abs=1e-5)
    same = compare(vectors, "a dog", " a  dog")
    assert all(line.lists[0][0].value == pytest.approx(1) for line in same.lines)


def test_the_closest_texts_come_first(vectors: Group) -> None:
    texts = ["the cat sat", "a bird flew over", "the sky was blue", "a dog", "red", "mat", "log"]
    answer = search(vectors, "a dog ran", "\n\n  ".join(texts) + "\n \n")
    for number in range(4):
        query = pooled(vectors, number, "a dog ran")
        cosines = {text: (query @ pooled(vectors, number, text)).item() for text in texts}
        found = only(answer, number)
        assert [one.text for one in found] == sorted(texts, key=lambda text: -cosines[text])[:5]
        for one in found:
            assert one.value == pytest.approx(cosines[one.text], abs=1e-5)
    assert [one.text for one in only(search(vectors, "a dog", "red\nlog\nred"))].count("red") == 2


def test_a_text_that_is_too_long_is_cut_and_named(vectors: Group) -> None:
    long = "the cat sat on the mat and a dog ran under it"
    answer = search(vectors, "a dog", f"red\n{long}")
    assert answer.notes == ["text 2 has 14 pieces; the model reads the first 12"]
    cut = "the cat sat on the mat and a dog ran"
    first, second = (
        {one.text: one.value for one in only(search(vectors, "a dog", f"red\n{text}"))}
        for text in (long, cut)
    )
    assert first[long] == pytest.approx(second[cut])
    assert compare(vectors, long, long).notes == [
        "the first sentence has 14 pieces; the model reads the first 12",
        "the second sentence has 14 pieces; the model reads the first 12",
    ]


def test_what_cannot_be_searched_is_refused(vectors: Group) -> None:
    for query, texts, said in (
        ("", "red", "the query is empty"),
        ("red", " \n\n", "there is no text to search in: type one per line"),
        ("red", "red\n" * 51, "there are 51 texts; valid are at most 50"),
        ("red", "x" * (MOST_CHARACTERS + 1), "text 1 has 20001 characters"),
    ):
        with pytest.raises(InputError, match=said):
            search(vectors, query, texts)
    with pytest.raises(InputError, match="the second sentence is empty"):
        compare(vectors, "red", " ")


def test_classes_come_with_their_probabilities(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    group = classes(tmp_path, tokenizer, "good", "bad", "so so")
    for texts in (["the cat sat"], ["the cat sat", "a dog ran"]):
        answer = classify(group, texts[0], "".join(texts[1:]))
        assert answer.quantity is Quantity.probability
        for number, line in enumerate(answer.lines):
            given = ids_of(group, *texts)  # with the types of a pair
            with torch.inference_mode():
                logits = line.shown.model(
                    given["input_ids"], token_type_ids=given["token_type_ids"]
                )[0]
            wanted = dict(zip(("good", "bad", "so so"), logits.softmax(-1).tolist(), strict=True))
            found = only(answer, number)
            assert {one.text for one in found} == set(wanted)
            assert [one.value for one in found] == sorted((o.value for o in found), reverse=True)
            for one in found:
                assert one.value == pytest.approx(wanted[one.text], rel=1e-4)
    pair, alone = (classify(group, "the cat sat", second) for second in ("a dog ran", " "))
    assert only(pair) != only(alone)
    long = classify(group, "the cat " * 9, "")
    assert long.notes == ["what you typed has 20 pieces; the model reads the first 12"]
    with pytest.raises(InputError, match="the sentence is empty"):
        classify(group, "", "a dog")


def test_a_model_without_classes_gives_its_score(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    group = classes(tmp_path, tokenizer)
    answer = classify(group, "the cat", "a dog")
    given = ids_of(group, "the cat", "a dog")
    with torch.inference_mode():
        model = group.models[0].model
        wanted = model(given["input_ids"], token_type_ids=given["token_type_ids"])
    assert answer.quantity is Quantity.score
    assert only(answer) == [Ranked("", pytest.approx(wanted.item(), rel=1e-5))]


def test_a_model_that_gives_nan_gives_no_answer(words: Group) -> None:
    with torch.no_grad():
        words.models[1].model.embeddings.norm.weight[0] = torch.nan
    answer = fill_in(words, "the [MASK] sat")
    assert [len(line.lists) for line in answer.lines] == [1, 0, 1, 1]


def test_the_time_is_the_median_of_further_passes_and_one_model_runs_at_a_time(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    passes = []

    def forward(module: Any, given: Any, output: Tensor) -> None:
        now[0] += [100.0, 0.001, 0.002, 0.009, 0.003, 0.008][len(passes)]
        passes.append((answers.ALONE.locked(), output.requires_grad))

    tokenizer.save_pretrained(tmp_path)
    model = tiny_model(Task.masked_lm)
    model.register_forward_hook(forward)
    shown = answers.Shown.of(RowKind.packed, "", model)
    (line,) = fill_in(Group("one", (shown,), tmp_path), "the [MASK]").lines
    assert line.ms == pytest.approx(3)
    assert passes == [(True, False)] * 6
    assert not answers.ALONE.locked()


def test_a_bar_ends_where_it_can() -> None:
    assert [Quantity.similarity.width(value) for value in (-0.5, 0.1234, 1.01)] == [0, 12.3, 100]
    assert [one.has_bar for one in Quantity] == [True, True, False]
    assert Quantity.score.shown(1234.5) == "1.23e+03"


def test_the_group_of_a_classifier_reads_as_many_pieces_as_it_has_positions(words: Group) -> None:
    assert words.length == 12
    short = replace(words.config.pooling, length=5)
    object.__setattr__(words.models[-1].model.config, "pooling", short)
    assert words.length == 5
