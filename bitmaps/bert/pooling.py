"""From the hidden states of a sentence to one vector."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitmaps.errors import InputError

MODES = ("mean", "cls", "max")
PACKAGE = "sentence_transformers."
KNOWN = ("Transformer", "Pooling", "Normalize")
UNLIMITED = 10**9  # tokenizers without a limit say more
OTHER_MODES = (
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
    "pooling_mode_lasttoken",
)


@dataclass(frozen=True)
class Pooling:
    """How a sentence encoder makes its vector, as a folder of sentence-transformers says.

    Attributes:
        mode: ``mean`` of the tokens, the state of [CLS] (``cls``), or the ``max`` of the tokens.
        normalize: whether the vector gets length 1.
        length: the greatest number of pieces of a sentence, [CLS] and [SEP] included; longer ones
            are cut. ``None`` is the model's number of positions.
    """

    mode: str = "mean"
    normalize: bool = True
    length: int | None = None

    @classmethod
    def read(cls, folder: Path) -> Pooling:
        """Read a folder of sentence-transformers. Without ``modules.json``: mean, normalized.

        Raises:
            InputError: when a file is damaged, or the folder has a module or a mode of pooling that
                cannot be represented here, such as a ``Dense`` layer.
        """
        if not (folder / "modules.json").is_file():
            return cls()
        mode, normalize, length = "", False, None
        for path, name in modules_of(folder):
            if name == "Transformer":
                length = read_length(folder / path)
            elif name == "Pooling":
                mode = read_mode(folder / path / "config.json")
            else:
                normalize = True
        if not mode:
            raise InputError(f"{folder / 'modules.json'} names no Pooling module")
        return cls(mode, normalize, length)

    def write(self, folder: Path, hidden_size: int, positions: int) -> None:
        """Write the files that make a folder one of sentence-transformers."""
        names = ["Transformer", "Pooling", *(["Normalize"] if self.normalize else [])]
        paths = ["", "1_Pooling", "2_Normalize"]
        modules = [
            {"idx": i, "name": str(i), "path": paths[i], "type": f"{PACKAGE}models.{name}"}
            for i, name in enumerate(names)
        ]
        pooling = {
            "word_embedding_dimension": hidden_size,
            "pooling_mode_cls_token": self.mode == "cls",
            "pooling_mode_mean_tokens": self.mode == "mean",
            "pooling_mode_max_tokens": self.mode == "max",
        }
        length = {"max_seq_length": self.length or positions, "do_lower_case": False}
        (folder / "1_Pooling").mkdir()
        for name, content in (
            ("modules.json", modules),
            ("1_Pooling/config.json", pooling),
            ("sentence_bert_config.json", length),
        ):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def modules_of(folder: Path) -> list[tuple[str, str]]:
    """The path and the class of each module of a folder, without their package.

    Raises:
        InputError: for a module that is unknown, or whose path leaves the folder.
    """
    file = folder / "modules.json"
    found = []
    for module in sentence_json(file, list):
        kind, path = (
            str(module.get(key, "")) if isinstance(module, dict) else "" for key in ("type", "path")
        )
        name = kind.rpartition(".")[2] if kind.startswith(PACKAGE) else kind
        if name not in KNOWN:
            raise InputError(
                f"{file} names the module {kind!r}, which has no place here; "
                f"valid are {', '.join(KNOWN)} of sentence_transformers"
            )
        if not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{file} names the path {path!r}; valid are paths inside the folder")
        found.append((path, name))
    return found


def read_mode(file: Path) -> str:
    """The mode of pooling; older files have a flag for each, newer ones ``pooling_mode``."""
    values = sentence_json(file, dict)
    flags = [mode for mode in MODES if values.get(f"pooling_mode_{flag_of(mode)}")]
    flags += [name for name in OTHER_MODES if values.get(name)]
    said = values.get("pooling_mode", flags)
    chosen = said if isinstance(said, list) else [said]
    if len(chosen) != 1 or chosen[0] not in MODES:
        raise InputError(f"{file} pools by {chosen}; valid is one of {', '.join(MODES)}")
    return str(chosen[0])


def flag_of(mode: str) -> str:
    return f"{mode}_token" if mode == "cls" else f"{mode}_tokens"


def read_length(folder: Path) -> int | None:
    """The greatest length that ``sentence_bert_config.json`` gives, or else the tokenizer, to which
    newer versions of sentence-transformers leave it."""
    file, tokenizer = folder / "sentence_bert_config.json", folder / "tokenizer_config.json"
    length = sentence_json(file, dict).get("max_seq_length") if file.is_file() else None
    if length is not None and (type(length) is not int or length < 3):
        raise InputError(f"{file}: max_seq_length is {length!r}; valid is 3 or more")
    if length is None and tokenizer.is_file():
        said = sentence_json(tokenizer, dict).get("model_max_length")
        length = said if type(said) is int and 3 <= said < UNLIMITED else None
    return length


def sentence_json(path: Path, kind: type) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: when it is missing, damaged or of another kind.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is missing or no JSON file: {error}") from error
    if not isinstance(found, kind):
        raise InputError(f"{path} holds no JSON {'list' if kind is list else 'object'}")
    return found


class SentenceVector(nn.Module):
    """``pool(hidden)``, of length 1 if so configured. It has no parameters.

    Shapes: hidden states (batch, length, hidden) and a mask (batch, length), true at tokens ->
    (batch, hidden).
    """

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        vectors = self.pool(hidden, mask)
        return F.normalize(vectors, dim=-1) if self.pooling.normalize else vectors

    def pool(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if self.pooling.mode == "cls":
            return hidden[:, 0]
        kept = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        kept = (kept if mask is None else mask.bool())[..., None]
        if self.pooling.mode == "max":
            return hidden.masked_fill(~kept, -torch.inf).amax(1)
        return (hidden * kept).sum(1) / kept.sum(1)
