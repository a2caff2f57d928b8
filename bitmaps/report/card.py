"""The model card of a packed model: ``README.md`` in the form of Hugging Face's cards, so that the folder explains itself
wherever it is taken."""

from __future__ import annotations

from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load

from bitmaps import ADAPTERS
from bitmaps.bert import BertConfig
from bitmaps.bert.checkpoint import locate
from bitmaps.command import schema
from bitmaps.errors import InputError
from bitmaps.packed import format as packed
from bitmaps.report.table import VALUE_SETS, markdown
from bitmaps.runs.folder import SCORES, Row

FILE = "README.md"
MIB = 2**20
HUB_DATA = {"ptb": "ptb-text-only/ptb_text_only"}  # where the Hub has a data set of ours
LICENSE = ("license", "license_name", "license_link")

CARD = """
# {title}

A masked-language BERT{how} by bitmaps, and stored in {stored}.

{facts}
## Scores

On the {split} split of `{data}`, {masked_tokens} masked tokens, `mask_seed` {mask_seed}. The last row is this model in floats,
before it was packed; `python evaluate.py checkpoint=<this folder>` scores it as it is stored. CE is the cross entropy in nats,
ms the milliseconds a sequence; MiB is a pseudo size, what the two values would take as bits.

{scores}
## Size on disk

`model.safetensors` has {on_disk} MiB; the same weights in fp32 would have {as_floats}.

## Use

```python
import bitmaps
from transformers import pipeline

model = bitmaps.load("<this folder>")  # in real bits, on kernels for the CPU
fill = pipeline("fill-mask", model=bitmaps.to_transformers(model), tokenizer="<this folder>")
fill("the capital of england is [MASK].")
```

## Licence

{licence}
"""


def license_of(source: str) -> dict[str, str]:
    """The licence of a model's weights, as the front matter of the card beside them says it: ``license`` is Hugging Face's
    identifier, ``unknown`` where nothing says it. The weights of a run have the licence of those that it started from."""
    try:
        folder = locate(source)
        metadata = (metadata_load(folder / FILE) if (folder / FILE).is_file() else None) or {}
        if "license" not in metadata and (folder.parent / "config.yaml").is_file():
            model = yaml.safe_load((folder.parent / "config.yaml").read_text(encoding="utf-8"))[
                "model"
            ]
            if model["weights"] == "pretrained":
                return license_of(model["source"])
    except (InputError, OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        metadata = {}  # what cannot be found or read says nothing
    return {"license": "unknown"} | {
        name: metadata[name] for name in LICENSE if isinstance(metadata.get(name), str)
    }


def write_card(folder: Path, rows: list[Row], model: schema.Model, data: schema.Data) -> None:
    """Write the card of a packed folder.

    Args:
        rows: of the run that it was trained in, of which the last is its own.
        model, data: what that run started from, and was trained on.
    """
    own, shape = rows[-1], BertConfig.from_file(folder / "config.json")
    pretrained = model.weights is schema.Weights.pretrained
    licence = license_of(str(model.source)) if pretrained else {}
    values = VALUE_SETS.get(own["values"], own["values"])
    tables = (shape.bitmaps or {}).get("embeddings", own["embeddings"])
    what = (
        f"word table in {tables}"
        if own["components"] == "none"
        else f"{own['components']} in {values}"
    )
    hub_data = data.path if data.name == "hub" else HUB_DATA.get(data.name)
    front = ModelCardData(
        model_name=f"{Path(own['model']).name}, {what}",
        library_name="bitmaps",
        pipeline_tag="fill-mask",
        tags=["bert", *(["binarized", "one-bit"] if values else [])],
        datasets=hub_data,
        base_model=model.source if pretrained and is_hub_id(str(model.source)) else None,
        eval_results=[
            EvalResult(
                "fill-mask",
                hub_data or data.name,
                own["data"],
                name,
                own[name],
                dataset_split=own["split"],
            )
            for name in SCORES
        ],
        **licence,  # type: ignore[arg-type]
    )
    origin = f"`{model.source}`" if pretrained else "none: it started from random ones"
    facts = {
        "source weights": origin
        + (f", with the adapter `{model.adapter}`" if pretrained and model.adapter else ""),
        "data": own["data"],
        "components": own["components"],
        "values": values,
        "scale": own["scale"],
        "word table": tables,
        "activations": own["activations"],
        "recipe": own["recipe"],
        "loss": own["loss"],
        "steps": own["steps"],
        "calibrated on sentences": own["calibrated_on"],
        "seed": own["seed"],
        "command": f"`{own['command']}`",
        "commit": own["commit"],
        "versions": ", ".join(f"{name} {version}" for name, version in own["versions"].items()),
    }
    if not pretrained:
        rights = "There were no source weights: it started from random ones."
    elif licence["license"] == "unknown":
        rights = f"Under which licence the source weights are, `{model.source}`, is unknown."
    else:
        name = licence.get("license_name", licence["license"])
        rights = f"The source weights, `{model.source}`, are under `{name}`; this model derives from them."
    if pretrained and model.adapter and (ADAPTERS / f"{model.adapter}.safetensors").is_file():
        rights += f" The adapter `{model.adapter}` is under `apache-2.0`; the NOTICE of bitmaps says what that derives from."
    as_floats = 4 * sum(parameter.numel() for parameter in packed.on_meta(shape).parameters())
    on_disk = (folder / packed.FILE).stat().st_size
    text = CARD.format(
        title=front.model_name,
        how=" trained through its binarization" if values else " trained",
        stored="real bits" if values else "fewer bits",
        facts="".join(
            f"- {name}: {value}\n" for name, value in facts.items() if value not in (None, "")
        ),
        scores=markdown([{"status": "ok"} | row for row in rows]),
        on_disk=f"{on_disk / MIB:.2f}",
        as_floats=f"{as_floats / MIB:.2f}",
        licence=f"{rights} The text that it was trained on has a licence of its own.",
        **{name: own[name] for name in ("split", "data", "masked_tokens", "mask_seed")},
    )
    ModelCard(f"---\n{front.to_yaml()}\n---\n{text}").save(folder / FILE)


def is_hub_id(source: str) -> bool:
    return not source.startswith("package:") and not Path(source).expanduser().exists()
