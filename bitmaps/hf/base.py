"""What all packed models share in ``transformers``: how they open, are stored and refuse."""

from __future__ import annotations

import os
from copy import deepcopy
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import CommitInfo, HfApi, ModelCard, ModelCardData, snapshot_download
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.hub import convert_file_size_to_int

from bitmaps import __version__
from bitmaps.bert import Bert, checkpoint
from bitmaps.bert.finding import HUB_FILES
from bitmaps.errors import InputError
from bitmaps.hf.config import BitmapsConfig, agreed
from bitmaps.packed import format as packed
from bitmaps.packed.activations import act_named
from bitmaps.packed.model import PackedBert
from bitmaps.vocabulary import Task

CARD = "README.md"
HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")
"""The options of ``from_pretrained`` that say where a Hub id is found."""
CALLERS = ("_from_auto", "_from_pipeline", "_commit_hash", "code_revision", "trust_remote_code")
"""What ``transformers`` passes on to every model. There is no code in a packed folder to trust."""
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "adapter_kwargs": ({},),
    "attn_implementation": ("eager",),  # which `transformers` calls a model that has its own
    "dtype": ("auto", "float32", torch.float32),
    "torch_dtype": ("auto", "float32", torch.float32),
    "use_safetensors": (True,),
    "weights_only": (True,),
}
"""The values of an option that say what is so anyway; ``None`` does for every option."""
REASONS = {
    "attn_implementation": "the kernels have their own attention",
    "device_map": "open the model without it, and move it by model.to(device)",
    "dtype": "a packed model computes in float32",
    "torch_dtype": "a packed model computes in float32",
    "quantization_config": "the weights are in bits already",
    "use_safetensors": "a packed folder has nothing else",
    "weights_only": "nothing is ever unpickled",
}


class BitmapsPreTrainedModel(PreTrainedModel):
    """A ``Bert`` of this package, packed or of floats, behind the interface of ``transformers``.

    Attributes:
        bert: the model.
        card: the model card in the folder that it was opened from, if there was one.
        tasks: the tasks whose models this class takes.
    """

    config: BitmapsConfig
    config_class = BitmapsConfig
    main_input_name = "input_ids"
    tasks: ClassVar[tuple[Task, ...]] = tuple(Task)

    def __init__(self, config: BitmapsConfig, bert: Bert | None = None) -> None:
        if bert is None:
            raise InputError(
                f"{type(self).__name__} has no random weights: open a packed folder with "
                "from_pretrained, or wrap a model with bitmaps.to_transformers"
            )
        if bert.config.task not in self.tasks:
            raise InputError(
                f"{type(self).__name__} is for {' or '.join(self.tasks)}, and this model is for "
                f"{bert.config.task}: {OPENERS[bert.config.task]} opens it"
            )
        super().__init__(config)
        self.bert = bert
        self.card: bytes | None = None

    @classmethod
    def from_pretrained(  # type: ignore[override]  # refuses what it does not know
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: BitmapsConfig | None = None,
        act: str | None = None,
        subfolder: str = "",
        output_loading_info: bool = False,
        **options: Any,
    ) -> Self | tuple[Self, dict[str, Any]]:
        """Open a packed folder, in evaluation mode. Its weights stay in the file's pages.

        Args:
            pretrained_model_name_or_path: a packed folder, or the Hub id of one.
            config: by default the folder's.
            act: what activations are rounded to, as in ``bitmaps.load``; by default as ``config``
                says.
            subfolder: the folder inside of it that has the model.
            output_loading_info: also return what is missing or left over, which is nothing: such a
                folder is refused.
            options: ``cache_dir``, ``force_download``, ``local_files_only``, ``revision`` and
                ``token`` say how a Hub id is found. What else names a setting of the configuration
                is set there.

        Raises:
            InputError: for a folder that is not packed, is damaged, or is for another task; for an
                option that is not supported, and a setting that the model does not have.
        """
        hub = {name: options.pop(name) for name in HUB if name in options}
        folder = folder_of(pretrained_model_name_or_path, subfolder, hub)
        if not packed.is_packed(folder):
            raise InputError(f"{folder} is not packed: transformers opens it by itself")
        if config is None:
            config, options = BitmapsConfig.from_pretrained(
                folder, return_unused_kwargs=True, **options
            )
        elif not isinstance(config, BitmapsConfig):
            raise InputError(f"config is a {type(config).__name__}; valid is a BitmapsConfig")
        refuse(options)
        refuse({"dtype": config.dtype, "attn_implementation": config._attn_implementation})
        config = deepcopy(config)
        config.act = config.act if act is None else act
        config.name_or_path = str(pretrained_model_name_or_path)
        bert = packed.load(folder, act_named(config.act))
        bert.config = agreed(config, bert.config)
        model = cls(config, bert).eval()
        if (folder / CARD).is_file():
            model.card = (folder / CARD).read_bytes()
        return (model, deepcopy(NOTHING_MISSING)) if output_loading_info else model

    def save_pretrained(  # type: ignore[override]  # refuses what it does not know
        self,
        save_directory: str | os.PathLike[str],
        *,
        max_shard_size: int | str = "50GB",
        safe_serialization: bool = True,
    ) -> None:
        """Write a folder that opens like the one that the model came from, without the tokenizer.

        A packed model becomes a packed folder again, with the same bytes. A model of floats becomes
        one of ``transformers`` (``bitmaps.bert.checkpoint.save``).

        Raises:
            FileExistsError: when the folder already holds a model.
            InputError: for a file larger than ``max_shard_size``, which is never split; and without
                ``safe_serialization``, as nothing is pickled.
        """
        if not safe_serialization:
            raise InputError("safe_serialization=False is not supported: nothing is pickled")
        size = sum(tensor.nbytes for tensor in (*self.bert.parameters(), *self.bert.buffers()))
        if size > convert_file_size_to_int(max_shard_size):
            raise InputError(
                f"max_shard_size={max_shard_size!r} is too small for the one file, which has "
                f"{size:,} bytes"
            )
        folder, config = Path(save_directory), agreed(self.config, self.bert.config)
        if not isinstance(self.bert, PackedBert):
            self.bert.config = config
            checkpoint.save(self.bert, folder)
            return
        if there := [name for name in ("config.json", packed.FILE) if (folder / name).exists()]:
            raise FileExistsError(f"{folder / there[0]} exists already: choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        packed.write_model(config, self.bert.parts(), folder)

    def push_to_hub(  # type: ignore[override]  # its files are one commit
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: list[str] | str | None = None,
    ) -> CommitInfo:
        """Upload what ``save_pretrained`` writes, in one commit, with the model's card.

        A card that the repository has stays. ``tokenizer.push_to_hub`` uploads the tokenizer.

        Args:
            tags: are added to those of the card, as those of ``add_model_tags`` are.
        """
        tags = [*(self.model_tags or []), *([tags] if isinstance(tags, str) else tags or [])]
        api = HfApi(token=token, library_name="bitmaps", library_version=__version__)
        with TemporaryDirectory() as folder, TemporaryDirectory() as cache:
            self.save_pretrained(folder)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            card = self.card
            if api.file_exists(repo_id, CARD, revision=revision):
                there = api.hf_hub_download(repo_id, CARD, revision=revision, cache_dir=cache)
                card = Path(there).read_bytes()
            (Path(folder) / CARD).write_bytes(tagged(card, tags))
            return api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, create_pr=create_pr,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
            )  # fmt: skip

    def states(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        output_attentions: bool | None,
    ) -> list[Tensor]:
        """``Bert.encode`` of what a model of ``transformers`` takes.

        ``position_ids`` are rows of the position table that the architecture's checkpoints have,
        and by default what the architecture makes of ``input_ids``.

        Raises:
            InputError: for embeddings instead of ids, and for attentions.
        """
        if inputs_embeds is not None or input_ids is None:
            raise InputError(
                "inputs_embeds is not supported: a packed model looks words up by input_ids"
            )
        if self.config.output_attentions if output_attentions is None else output_attentions:
            raise InputError(
                "output_attentions is not supported: the kernels do not keep attentions"
            )
        if first := self.bert.config.family.first_position(self.bert.config.pad_token_id):
            # the row of padding is before it: of the token `first - 1`, which no other sees
            if position_ids is None:
                position_ids = torch.ne(input_ids, first - 1).cumsum(1) - 1
            else:
                position_ids = position_ids - first
            position_ids = position_ids.clamp(min=0)
        return self.bert.encode(input_ids, attention_mask, token_type_ids, position_ids)

    def shown(self, states: list[Tensor], wanted: bool | None) -> tuple[Tensor, ...] | None:
        """The hidden states, if they are asked for here or by the configuration."""
        wanted = self.config.output_hidden_states if wanted is None else wanted
        return tuple(states) if wanted else None

    def train(self, mode: bool = True) -> Self:
        """Raises:
        InputError: for a packed model, which only predicts."""
        self.refuse_training(mode)
        return super().train(mode)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Raises:
        InputError: for a packed model, whose weights have no gradient."""
        self.refuse_training(requires_grad)
        return super().requires_grad_(requires_grad)

    def enable_input_require_grads(self) -> None:
        """Raises:
        InputError: for a packed model, which passes no gradient on."""
        self.refuse_training(True)
        super().enable_input_require_grads()

    def refuse_training(self, asked: bool) -> None:
        if asked and isinstance(self.bert, PackedBert):
            raise InputError(
                "training is not supported: the weights of a packed model are bits without a "
                "gradient; train the run's model/ and pack it again"
            )

    def get_input_embeddings(self) -> nn.Module:
        return self.bert.embeddings.word

    def set_input_embeddings(self, value: nn.Module) -> None:
        raise InputError("set_input_embeddings is not supported: the word table is in the file")

    def resize_token_embeddings(self, *arguments: Any, **options: Any) -> Any:
        raise InputError("resize_token_embeddings is not supported: the word table has its size")

    def set_attn_implementation(self, *arguments: Any, **options: Any) -> None:
        raise InputError(
            f"set_attn_implementation is not supported: {REASONS['attn_implementation']}"
        )

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The number of weights; a packed one counts like any other."""
        if not isinstance(self.bert, PackedBert):
            return super().num_parameters(only_trainable, exclude_embeddings)
        return 0 if only_trainable else sum(
            prod(part.shape)
            for name, part in self.bert.parts().items()
            if not (exclude_embeddings and name.startswith("embeddings.") and "norm" not in name)
        )  # fmt: skip


OPENERS = {
    Task.masked_lm: "AutoModelForMaskedLM",
    Task.sentence_embedding: "AutoModel",
    Task.classification: "AutoModelForSequenceClassification",
}
NOTHING_MISSING: dict[str, Any] = {
    "missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": [],
}  # fmt: skip


def folder_of(source: str | os.PathLike[str], subfolder: str, hub: dict[str, Any]) -> Path:
    """The local folder of a model, downloaded if ``source`` is a Hub id."""
    folder = Path(source)
    if not folder.is_dir():
        wanted = [f"{subfolder}/{name}" if subfolder else name for name in HUB_FILES]
        folder = Path(snapshot_download(str(source), allow_patterns=wanted, **hub))
    return folder / subfolder


def refuse(options: dict[str, Any]) -> None:
    """Raises:
    InputError: for the first option that would have no effect."""
    for name, value in options.items():
        if name in CALLERS or value is None or value in WITHOUT_EFFECT.get(name, ()):
            continue
        reason = f": {REASONS[name]}" if name in REASONS else ""
        raise InputError(f"{name}={value!r:.60} is not supported by a packed model{reason}")


def tagged(card: bytes | None, tags: list[str]) -> bytes:
    """A model card with these tags too; without one, the template of Hugging Face."""
    if card is None:
        return str(
            ModelCard.from_template(ModelCardData(library_name="bitmaps", tags=tags))
        ).encode()
    if not tags:
        return card
    found = ModelCard(card.decode())
    found.data["tags"] = [*dict.fromkeys([*(found.data.get("tags") or []), *tags])]
    return str(found).encode()
