"""The vector of a sentence, and the folders of sentence-transformers that say how it is made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bert.folders import reconfigure
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from bitmaps.bert import Bert, BertConfig
from bitmaps.bert.checkpoint import config_of, load, save
from bitmaps.bert.pooling import MODES, Pooling, SentenceVector
from bitmaps.errors import InputError
from bitmaps.vocabulary import Task

TEXTS = ["the cat sat on the mat", "a bird", "", "dog and cat ran under the very big sky then it"]
EVERY_POOLING = [Pooling(mode, normalize) for mode in MODES for normalize in (True, False)]


def encoder(pooling: Pooling, seed: int = 0) -> Bert:
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=12, initializer_range=0.3, task=Task.sentence_embedding, pooling=pooling,
    )  # fmt: skip
    return Bert(config).randomize(torch.Generator().manual_seed(seed)).eval()


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with a mean and a norm, in the older layout."""
    Pooling("mean", True, 9).write(tmp_path, hidden_size=16, positions=12)
    return tmp_path


def by_hand(hidden: np.ndarray, mask: np.ndarray, pooling: Pooling) -> np.ndarray:
    """Sentence by sentence in fp64, padding cut off."""
    found = []
    for states, kept in zip(hidden.astype(np.float64), mask, strict=True):
        tokens = states[kept]
        vector = {"mean": tokens.mean(0), "cls": states[0], "max": tokens.max(0)}[pooling.mode]
        found.append(vector / np.linalg.norm(vector) if pooling.normalize else vector)
    return np.array(found)


@given(
    pooling=st.sampled_from(EVERY_POOLING),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([torch.bool, torch.int64]),
)
def test_a_vector_depends_on_the_tokens_alone(
    pooling: Pooling, lengths: list[int], seed: int, dtype: torch.dtype
) -> None:
    generator = np.random.default_rng(seed)
    hidden = generator.normal(size=(len(lengths), max(lengths), 6)).astype(np.float32)
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    found = SentenceVector(pooling)(torch.from_numpy(hidden), torch.from_numpy(mask).to(dtype))
    np.testing.assert_allclose(found, by_hand(hidden, mask, pooling), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", EVERY_POOLING)
def test_without_a_mask_every_position_is_a_token(pooling: Pooling) -> None:
    hidden = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
    found = SentenceVector(pooling)(hidden)
    np.testing.assert_allclose(
        found, by_hand(hidden.numpy(), np.ones((3, 5), dtype=bool), pooling), atol=1e-6
    )


def test_a_sentence_vector_has_no_parameters() -> None:
    assert not SentenceVector(Pooling()).state_dict()


@given(
    mode=st.sampled_from(MODES),
    normalize=st.booleans(),
    length=st.none() | st.integers(3, 600),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, mode: str, normalize: bool, length: int | None
) -> None:
    folder = tmp_path_factory.mktemp("written")
    Pooling(mode, normalize, length).write(folder, hidden_size=16, positions=512)
    assert Pooling.read(folder) == Pooling(mode, normalize, length or 512)


def test_a_folder_of_no_sentence_encoder_pools_by_the_mean_and_normalizes(tmp_path: Path) -> None:
    assert Pooling.read(tmp_path) == Pooling("mean", True, None)


@pytest.mark.parametrize("pooling", EVERY_POOLING)
def test_a_saved_encoder_opens_as_itself(pooling: Pooling, tmp_path: Path) -> None:
    model = encoder(pooling)
    save(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.config.task is Task.sentence_embedding
    assert again.config.pooling == replace(pooling, length=12)
    ids = torch.randint(60, (3, 7), generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(ids), model(ids))


@pytest.mark.slow  # to import it takes ten seconds
@pytest.mark.filterwarnings("ignore")  # of its own imports, and of a pooler that the folder lacks
@pytest.mark.parametrize("pooling", [*EVERY_POOLING, Pooling("mean", True, 6)])
def test_sentence_transformers_makes_the_same_vectors(
    pooling: Pooling, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder, model = tmp_path / "saved", encoder(pooling)
    save(model, folder)
    tokenizer.save_pretrained(folder)
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert theirs.max_seq_length == (pooling.length or 12)
    data = tokenizer(
        TEXTS, padding=True, truncation=True, max_length=pooling.length or 12, return_tensors="pt"
    )
    with torch.no_grad():
        ours = load(folder)(data["input_ids"], data["attention_mask"])
    np.testing.assert_allclose(ours, theirs.encode(TEXTS), atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pooling", EVERY_POOLING)
def test_a_folder_that_sentence_transformers_wrote_is_read(
    pooling: Pooling, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder, model = tmp_path / "saved", encoder(pooling)
    save(model, folder)
    tokenizer.save_pretrained(folder)
    sentence_transformers.SentenceTransformer(str(folder), device="cpu").save(str(tmp_path / "new"))
    assert config_of(tmp_path / "new").task is Task.sentence_embedding
    again = load(tmp_path / "new")
    assert (again.config.pooling.mode, again.config.pooling.normalize) == (
        pooling.mode,
        pooling.normalize,
    )
    ids = torch.randint(60, (3, 7), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again(ids), model(ids), atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_the_newer_layout_names_its_mode(mode: str, written: Path) -> None:
    package = "sentence_transformers.sentence_transformer.modules"
    kinds = ("transformer.Transformer", "pooling.Pooling")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"{package}.{kind}"}
        for i, (path, kind) in enumerate(zip(("", "1_Pooling"), kinds, strict=True))
    ]
    write_json(written / "modules.json", modules)
    write_json(written / "1_Pooling/config.json", {"embedding_dimension": 16, "pooling_mode": mode})
    (written / "sentence_bert_config.json").unlink()
    assert Pooling.read(written) == Pooling(mode, False, None)


@pytest.mark.parametrize("length", [0, 2, -1, True, 9.5, "9", [9]])
def test_a_length_that_cannot_be_is_refused(length: Any, written: Path) -> None:
    write_json(written / "sentence_bert_config.json", {"max_seq_length": length})
    with pytest.raises(InputError, match=r"max_seq_length is .*; valid is 3 or more"):
        Pooling.read(written)


@pytest.mark.parametrize(
    ("said", "length"),
    [(9, 9), (512, 512), (None, None), (int(1e30), None), (1e30, None), ("9", None), (2, None)],
)
def test_the_tokenizer_gives_the_length_if_nothing_else_does(
    said: Any, length: int | None, written: Path
) -> None:
    """As in folders that sentence-transformers 6 writes. 1e30 is a tokenizer without a limit."""
    before = Pooling.read(written).length
    write_json(written / "tokenizer_config.json", {"model_max_length": said})
    assert Pooling.read(written).length == before  # which its own file says
    write_json(written / "sentence_bert_config.json", {})
    assert Pooling.read(written).length == length


@pytest.mark.parametrize("content", [{}, {"max_seq_length": None}])
def test_a_folder_need_not_give_a_length(content: Any, written: Path) -> None:
    write_json(written / "sentence_bert_config.json", content)
    assert Pooling.read(written) == Pooling("mean", True, None)


@pytest.mark.parametrize(
    "modes",
    [
        {},
        {"pooling_mode_mean_tokens": False},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True},
        {"pooling_mode_mean_sqrt_len_tokens": True},
        {"pooling_mode_weightedmean_tokens": True},
        {"pooling_mode": "median"},
        {"pooling_mode": ["mean", "max"]},
        {"pooling_mode": []},
        {"pooling_mode": None},
        {"pooling_mode": {"mean": 1}},
        {"pooling_mode": 1},
    ],
)
def test_another_pooling_is_refused(modes: dict[str, Any], written: Path) -> None:
    write_json(written / "1_Pooling/config.json", modes)
    with pytest.raises(InputError, match=r"pools by .*; valid is one of mean, cls, max"):
        Pooling.read(written)


@pytest.mark.parametrize(
    "module",
    [
        {"path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        {"path": "2_LSTM", "type": "sentence_transformers.models.LSTM"},
        {"path": "2", "type": "somewhere.else.Pooling"},
        {"path": "2"},
        {"path": "2", "type": 5},
        "Pooling",
        None,
    ],
)
def test_a_module_without_a_place_here_is_refused(module: Any, written: Path) -> None:
    modules = json.loads((written / "modules.json").read_text(encoding="utf-8"))
    write_json(written / "modules.json", [*modules, module])
    with pytest.raises(InputError, match=r"valid are Transformer, Pooling, Normalize of"):
        Pooling.read(written)


@pytest.mark.parametrize("path", ["..", "../other", "/etc", "1_Pooling/../../x"])
def test_a_path_that_leaves_the_folder_is_refused(path: str, written: Path) -> None:
    module = {"path": path, "type": "sentence_transformers.models.Pooling"}
    write_json(written / "modules.json", [module])
    with pytest.raises(InputError, match="valid are paths inside the folder"):
        Pooling.read(written)


def test_a_link_that_leaves_the_folder_is_refused(written: Path) -> None:
    inner = written / "inner"
    inner.mkdir()
    (inner / "link").symlink_to(written / "1_Pooling")
    module = {"path": "link", "type": "sentence_transformers.models.Pooling"}
    write_json(inner / "modules.json", [module])
    with pytest.raises(InputError, match="valid are paths inside the folder"):
        Pooling.read(inner)


def test_a_folder_without_a_pooling_is_refused(written: Path) -> None:
    write_json(
        written / "modules.json", [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    )
    with pytest.raises(InputError, match="names no Pooling module"):
        Pooling.read(written)


@pytest.mark.parametrize(
    "file", ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json"]
)
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"5", b"null"])
def test_a_damaged_file_is_refused_by_name(file: str, content: bytes, written: Path) -> None:
    (written / file).write_bytes(content)
    with pytest.raises(InputError, match=file):
        Pooling.read(written)


def test_a_missing_file_of_the_pooling_is_refused_by_name(written: Path) -> None:
    (written / "1_Pooling/config.json").unlink()
    with pytest.raises(InputError, match=r"1_Pooling/config\.json is missing"):
        Pooling.read(written)


def test_a_body_alone_is_a_sentence_encoder_only_in_such_a_folder(tmp_path: Path) -> None:
    save(encoder(Pooling()), tmp_path / "saved")
    reconfigure(tmp_path / "saved", architectures=["BertForMaskedLM"])
    assert config_of(tmp_path / "saved").task is Task.masked_lm
    reconfigure(tmp_path / "saved", architectures=["BertModel"])
    (tmp_path / "saved" / "modules.json").unlink()
    assert config_of(tmp_path / "saved").task is Task.masked_lm
