"""``examples/serve.py``: a packed model over HTTP."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Pack

import bitmaps
from bitmaps.bert import Bert, BertConfig
from bitmaps.vocabulary import Task

fastapi = pytest.importorskip("fastapi", reason="the extra serve is not installed")
testclient = pytest.importorskip("fastapi.testclient", reason="the extra serve is not installed")

ROOT = Path(__file__).parents[1]
TEXTS = ["the cat sat", "a very big dog ran on the mat", "sky"]


def example() -> Any:
    spec = importlib.util.spec_from_file_location("serve", ROOT / "examples" / "serve.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["serve"] = module  # its annotations are looked up there
    spec.loader.exec_module(module)
    return module


serve = example()


@pytest.fixture
def served(tiny: Bert, pack: Pack) -> Callable[..., tuple[Any, Bert]]:
    """A client of a packed model for a task, and the model."""

    def start(task: Task, **config: Any) -> tuple[Any, Bert]:
        sizes = replace(tiny.config, task=task, **config)
        model = Bert(BertConfig(**vars(sizes))).randomize(torch.Generator().manual_seed(0)).eval()
        opened = bitmaps.load(pack(model))
        return testclient.TestClient(serve.app_of(opened, "tiny")), opened

    return start


def test_vectors_are_those_of_the_model(served: Callable[..., tuple[Any, Bert]]) -> None:
    client, model = served(Task.sentence_embedding)
    found = client.post("/embed", json={"texts": TEXTS}).json()["vectors"]
    for text, vector in zip(TEXTS, found, strict=True):
        ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
        expected = model(ids, torch.ones_like(ids))[0]
        torch.testing.assert_close(torch.tensor(vector), expected, atol=1e-5, rtol=0)


def test_classes_have_their_names_and_probabilities(
    served: Callable[..., tuple[Any, Bert]],
) -> None:
    client, model = served(Task.classification, labels=("bad", "good", "unclear"))
    (found, *_) = client.post("/classify", json={"texts": TEXTS}).json()["classes"]
    ids = model.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    assert list(found) == ["bad", "good", "unclear"]
    expected = model(ids)[0].softmax(-1).tolist()
    assert list(found.values()) == pytest.approx(expected, abs=1e-5)


def test_a_classifier_of_pairs_takes_pairs(served: Callable[..., tuple[Any, Bert]]) -> None:
    client, model = served(Task.classification, labels=("other", "same"))
    pairs = [("the cat sat", "a dog"), ("sky", "a very big dog ran on the mat")]
    found = client.post("/classify", json={"texts": pairs}).json()["classes"]
    for pair, classes in zip(pairs, found, strict=True):
        batch = model.tokenizer(*pair, return_tensors="pt")
        assert set(batch["token_type_ids"].flatten().tolist()) == {0, 1}
        expected = model(**batch)[0].softmax(-1).tolist()
        assert list(classes.values()) == pytest.approx(expected, abs=1e-5)
    for bad in ([["cat"]], [["cat", "dog", "sky"]], ["cat", ["cat", "dog"]], [["cat", "dog"], "x"]):
        assert client.post("/classify", json={"texts": bad}).status_code == 422, bad


def test_other_models_refuse_pairs(served: Callable[..., tuple[Any, Bert]]) -> None:
    for task, path in ((Task.sentence_embedding, "/embed"), (Task.masked_lm, "/fill")):
        client, _ = served(task)
        refused = client.post(path, json={"texts": [["a [MASK]", "dog"]]})
        assert refused.status_code == 422
        assert refused.json()["detail"] == f"{path} takes texts; pairs of texts are for /classify"


def test_masks_are_filled(served: Callable[..., tuple[Any, Bert]]) -> None:
    client, model = served(Task.masked_lm)
    texts = ["the [MASK] sat on the [MASK]", "[MASK]"]
    found = client.post("/fill", json={"texts": texts}).json()["filled"]
    expected = [
        [[{"token": g.token, "probability": g.probability} for g in mask] for mask in one]
        for one in (bitmaps.fill(model, text) for text in texts)
    ]
    assert [[len(mask) for mask in one] for one in found] == [[5, 5], [5]]
    assert found[0][0][0]["token"] == expected[0][0][0]["token"]
    refused = client.post("/fill", json={"texts": ["the cat"]})
    assert refused.status_code == 422
    assert "put [MASK] where a word is missing" in refused.json()["detail"]


def test_limits_are_kept(served: Callable[..., tuple[Any, Bert]]) -> None:
    client, _ = served(Task.sentence_embedding)
    longest = {"texts": ["cat " * (serve.MOST_CHARACTERS // 4)] * serve.MOST_TEXTS}
    assert client.post("/embed", json=longest).status_code == 200  # cut at the model's length
    for texts in ([], ["cat"] * (serve.MOST_TEXTS + 1), ["c" * (serve.MOST_CHARACTERS + 1)], [1]):
        assert client.post("/embed", json={"texts": texts}).status_code == 422, texts[:1]
    assert client.post("/classify", json={"texts": ["cat"]}).status_code == 404
    assert client.get("/health").json() == {
        "status": "ok", "model": "tiny", "task": "sentence_embedding", "path": "/embed"
    }  # fmt: skip


def test_requests_that_come_at_once_get_their_own_answers(
    served: Callable[..., tuple[Any, Bert]],
) -> None:
    client, _ = served(Task.sentence_embedding)
    alone = [client.post("/embed", json={"texts": [text]}).json() for text in TEXTS]
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        text = TEXTS[number % len(TEXTS)]
        found[number] = client.post("/embed", json={"texts": [text]}).json()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[number] == alone[number % len(TEXTS)] for number in range(12))
