"""The model card of a packed model: ``README.md`` in Hugging Face's format, so that the folder
explains itself wherever it is copied."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load

from bitmaps import ADAPTERS
from bitmaps.bert import Bert, BertConfig
from bitmaps.bert.finding import locate
from bitmaps.bert.model import on_meta
from bitmaps.command.parts import Data, Model
from bitmaps.errors import InputError, as_text
from bitmaps.packed import format as packed
from bitmaps.report.comparison import comparison_of, shown_values
from bitmaps.report.entries import Entry
from bitmaps.report.files import markdown, plain
from bitmaps.runs.records import Facts, Row, Timing, score_names
from bitmaps.vocabulary import RowKind, Task, Weights

FILE = "README.md"
MIB = 2**20
HUB_DATA = {"ptb": "ptb-text-only/ptb_text_only"}  # the Hub id of a source with another name
LICENSE = ("license", "license_name", "license_link")

CARD = """
# {title}

A {kind}, {how} by bitmaps and stored in {stored}.

{facts}
## Scores

On the {split} split of {data}, with {scored_on}. The last row is this model {last}. {columns}
MiB is a pseudo size: that of the weights if two values are stored as bits. To score it again:

    python evaluate.py checkpoint=<this folder>{more}

{scores}
## Size on disk

`model.safetensors` has {on_disk} MiB. The same weights in fp32 would have {as_floats} MiB.

## Use

```python
{use}
```

## Licence

{licence}
"""

LAST = {
    RowKind.trained: "in floats, before it was packed",
    RowKind.packed: "as it is stored",
}

PIPELINE = """import bitmaps.hf  # the real bits, on kernels for the CPU
from transformers import pipeline

{name} = pipeline("{task}", model="<this folder>")
{name}({text})
"""
LOAD = 'model = bitmaps.load("<this folder>")  # the same without transformers'
ENCODER = """import bitmaps.hf  # the real bits, on kernels for the CPU
from sentence_transformers import SentenceTransformer

encoder = SentenceTransformer("<this folder>")
vectors = encoder.encode(["the capital of england"])
"""


@dataclass(frozen=True)
class TaskText:
    """What a card says of a task.

    Attributes:
        kind: of model.
        tag: the pipeline of Hugging Face.
        scored_on: a template.
        columns: what the scores are.
        more: what scoring needs besides the folder.
        use: Python code.
    """

    kind: str
    tag: str
    scored_on: str
    columns: str
    more: str
    use: str


TEXTS = {
    Task.masked_lm: TaskText(
        "masked-language BERT",
        "fill-mask",
        "{masked_tokens} masked tokens and `mask_seed` {mask_seed}",
        "CE is the cross entropy in nats.",
        "",
        PIPELINE.format(name="fill", task="fill-mask", text='"the capital of england is [MASK]."')
        + LOAD,
    ),
    Task.sentence_embedding: TaskText(
        "sentence encoder",
        "sentence-similarity",
        "{sentences} sentences",
        "cosine is the mean cosine to the vector of the original. recall@10 is the share of a "
        "sentence's ten nearest neighbours by the original that are among its ten nearest here.",
        " similarity=<file>",
        ENCODER + LOAD,
    ),
    Task.classification: TaskText(
        "classifier",
        "text-classification",
        "{sentences} sentences or pairs",
        "MCC is the Matthews correlation coefficient.",
        "",
        PIPELINE.format(name="classify", task="text-classification", text='"It was wonderful."')
        + LOAD,
    ),
}


def license_of(source: str) -> dict[str, str]:
    """The licence of a model's weights, from the front matter of the card beside them.

    ``license`` is Hugging Face's identifier, or ``unknown`` where no card names one. The weights of
    a run have the licence of the weights that it started from.
    """
    seen: set[Path] = set()
    try:
        while True:
            folder = locate(source).resolve()
            metadata = (metadata_load(folder / FILE) if (folder / FILE).is_file() else None) or {}
            config = folder.parent / "config.yaml"
            # a chain of runs that meets itself names no licence either
            if "license" in metadata or not config.is_file() or folder in seen:
                break
            seen.add(folder)
            model = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]
            if model["weights"] != Weights.pretrained:
                break
            source = model["source"]
    except (InputError, OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        metadata = {}  # a card that cannot be read names no licence
    named = {name: metadata[name] for name in LICENSE if isinstance(metadata.get(name), str)}
    return {"license": "unknown"} | named


def write_card(folder: Path, rows: list[Row], model: Model, data: Data) -> None:
    """Write the card of a packed folder.

    Args:
        rows: of the run that trained it, and of the packed model if it was scored.
        model, data: what that run started from, and what it was trained on.
    """
    rows = sorted(rows, key=lambda row: list(RowKind).index(row.kind))
    own, shape = rows[-1], BertConfig.from_file(folder / "config.json")
    licence = license_of(str(model.source)) if model.weights is Weights.pretrained else {}
    words = str((shape.bitmaps or {}).get("embeddings", own.facts.embeddings))
    front = front_matter(own, model, data, words, licence)
    # times belong to a machine, and to what else ran on it
    comparison = comparison_of(Entry.of(replace(row, timing=Timing()), folder) for row in rows)
    with on_meta():
        as_floats = 4 * sum(parameter.numel() for parameter in Bert(shape).parameters())
    on_disk = (folder / packed.FILE).stat().st_size
    two_values = own.facts.values is not None
    about = TEXTS[own.facts.task]
    text = CARD.format(
        title=plain(str(front.model_name)),
        how="trained through its binarization" if two_values else "trained",
        stored="real bits" if two_values else "fewer bits",
        facts=fact_list(own.facts, model, words),
        scores=markdown(comparison),
        on_disk=f"{on_disk / MIB:.2f}",
        as_floats=f"{as_floats / MIB:.2f}",
        licence=licence_text(model, licence),
        split=own.facts.split,
        data=code(own.facts.data),
        kind=about.kind,
        scored_on=about.scored_on.format(
            masked_tokens=own.scores.masked_tokens,
            mask_seed=own.facts.mask_seed,
            sentences=own.scores.sentences,
        ),
        last=LAST[own.kind],
        columns=about.columns,
        more=about.more,
        use=about.use,
    )
    ModelCard(f"---\n{front.to_yaml()}\n---\n{text}").save(folder / FILE)


def front_matter(
    own: Row, model: Model, data: Data, words: str, licence: dict[str, str]
) -> ModelCardData:
    """The metadata that the Hub reads."""
    facts, values = own.facts, shown_values(own.facts)
    stored = f"word table in {words}"
    if facts.components != "none":
        stored = f"{facts.components} in {values}"
    hub_data = data.path if data.name == "hub" else HUB_DATA.get(data.name)
    on_hub = model.weights is Weights.pretrained and is_hub_id(str(model.source))
    results = [
        EvalResult(
            TEXTS[facts.task].tag,
            hub_data or data.name,
            str(facts.data),
            name,
            getattr(own.scores, name),
            dataset_split=str(facts.split),
        )
        for name in score_names(own.scores)
    ]
    return ModelCardData(
        model_name=f"{Path(str(facts.model)).name}, {stored}",
        library_name="bitmaps",
        pipeline_tag=TEXTS[facts.task].tag,
        tags=["bert", *(["binarized", "one-bit"] if values else [])],
        datasets=hub_data,
        base_model=model.source if on_hub else None,
        eval_results=results,
        **licence,  # type: ignore[arg-type]
    )


def fact_list(facts: Facts, model: Model, words: str) -> str:
    """What was run, as a Markdown list without what does not apply."""
    origin = "none: training started from random weights"
    if model.weights is Weights.pretrained:
        adapter = f", with the adapter {code(model.adapter)}" if model.adapter else ""
        origin = f"{code(model.source)}{adapter}"
    found = {
        "data": facts.data,
        "components": facts.components,
        "values": shown_values(facts),
        "scale": facts.scale,
        "word table": words,
        "activations": facts.activations,
        "recipe": facts.recipe,
        "loss": facts.loss,
        "steps": facts.steps,
        "calibrated on sentences": facts.calibrated_on,
        "tuned on sentences": facts.tuned_on,
        "seed": facts.seed,
        "commit": facts.commit,
        "versions": ", ".join(f"{name} {version}" for name, version in facts.versions.items()),
    }
    shown = {"source weights": origin} | {
        name: plain(str(value)) for name, value in found.items() if value not in (None, "")
    }
    shown["command"] = code(facts.command)
    return "".join(f"- {name}: {value}\n" for name, value in shown.items())


def code(name: object) -> str:
    """A name as code in Markdown."""
    text = as_text(name).replace("`", "'")
    return f"`{text}`"


def licence_text(model: Model, licence: dict[str, str]) -> str:
    """The licences of the source weights, of the adapter and of the text, in words."""
    if model.weights is not Weights.pretrained:
        text = "There are no source weights: training started from random weights."
    elif licence["license"] == "unknown":
        text = f"The licence of the source weights, {code(model.source)}, is unknown."
    else:
        name = licence.get("license_name", licence["license"])
        text = (
            f"The source weights, {code(model.source)}, are under {code(name)}; "
            "this model derives from them."
        )
    pretrained = model.weights is Weights.pretrained
    if pretrained and model.adapter and (ADAPTERS / f"{model.adapter}.safetensors").is_file():
        text += (
            f" The adapter {code(model.adapter)} is under `apache-2.0`; "
            "the NOTICE of bitmaps names what it derives from."
        )
    return f"{text} The training text has a licence of its own."


def is_hub_id(source: str) -> bool:
    return not source.startswith("package:") and not Path(source).expanduser().exists()
