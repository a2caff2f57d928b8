"""Serve a packed model over HTTP.

    pip install -c constraints.txt -e '.[serve]'
    python examples/serve.py <run folder>/packed --port 8000
    curl localhost:8000/embed -H 'content-type: application/json' -d '{"texts": ["a sentence"]}'

A sentence encoder answers at /embed, a classifier at /classify and a masked-language model at
/fill. A classifier of pairs takes lists of two texts. /health says what is served, and /docs shows
every field. Requests wait for each other: one batch at a time uses all cores (torch's threads;
OMP_NUM_THREADS sets them).
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

import bitmaps
from bitmaps.bert import Bert
from bitmaps.errors import InputError, refuse
from bitmaps.vocabulary import Task

CLASSIFY = "/classify"
MOST_TEXTS = 64  # in a request
MOST_CHARACTERS = 10_000  # in a text; the model reads its beginning
MOST_TOKENS = 512  # of a text, where the model has more positions

Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]
Pair = tuple[Text, Text]
Read = list[str] | list[tuple[str, str]]


class Texts(BaseModel):
    """What a request brings: texts, or pairs of texts."""

    texts: Annotated[list[Text] | list[Pair], Field(min_length=1, max_length=MOST_TEXTS)]


class Vectors(BaseModel):
    vectors: list[list[float]]


class Classes(BaseModel):
    """The probability of each class for each text; of a regression, its score."""

    classes: list[dict[str, float]]


class Guess(BaseModel):
    token: str
    probability: float


class Filled(BaseModel):
    """For each text and each of its masks, the most probable tokens."""

    filled: list[list[list[Guess]]]


def encoded(model: Bert, texts: Read) -> dict[str, torch.Tensor]:
    """Texts or pairs as one batch; each is cut at the model's length."""
    own = model.config.pooling.length or MOST_TOKENS  # of a sentence encoder
    length = min(own, MOST_TOKENS, model.config.max_position_embeddings)
    batch = model.tokenizer(
        texts, padding=True, truncation=True, max_length=length, return_tensors="pt"
    )
    taken = ("input_ids", "attention_mask", "token_type_ids")
    return {name: batch[name] for name in taken if name in batch}


def embed(model: Bert, texts: list[str]) -> Vectors:
    return Vectors(vectors=model(**encoded(model, texts)).tolist())


def classify(model: Bert, texts: Read) -> Classes:
    scores = model(**encoded(model, texts))
    names = model.config.labels or ("score",)
    found = scores.softmax(-1) if model.config.labels else scores
    return Classes(classes=[dict(zip(names, one, strict=True)) for one in found.tolist()])


def fill(model: Bert, texts: list[str]) -> Filled:
    found = [bitmaps.fill(model, text) for text in texts]
    return Filled(
        filled=[
            [[Guess(token=g.token, probability=g.probability) for g in mask] for mask in text]
            for text in found
        ]
    )


ANSWERS: dict[Task, tuple[str, Callable[[Bert, Any], BaseModel], type[BaseModel]]] = {
    Task.sentence_embedding: ("/embed", embed, Vectors),
    Task.classification: (CLASSIFY, classify, Classes),
    Task.masked_lm: ("/fill", fill, Filled),
}


def app_of(model: Bert, name: str) -> FastAPI:
    """The application that serves a model of ``bitmaps.load``.

    Args:
        name: what /health calls it.
    """
    path, answer, kind = ANSWERS[model.config.task]
    app = FastAPI(title=f"bitmaps: {name}")
    turn = threading.Lock()

    @app.post(path, response_model=kind)
    def answered(request: Texts) -> Any:
        if path != CLASSIFY and not isinstance(request.texts[0], str):
            raise HTTPException(422, f"{path} takes texts; pairs of texts are for {CLASSIFY}")
        try:
            with turn, torch.inference_mode():
                return answer(model, request.texts)
        except InputError as error:
            raise HTTPException(422, str(error)) from error

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "model": name, "task": model.config.task, "path": path}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="a packed folder, or whatever bitmaps.load opens")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    try:
        model = bitmaps.load(given.folder)
        _ = model.tokenizer  # a folder without one ends here, and not at the first request
    except InputError as error:
        refuse(error)
    uvicorn.run(app_of(model, given.folder), host=given.host, port=given.port)


if __name__ == "__main__":
    main()
