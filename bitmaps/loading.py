"""Open any model: in full precision, of effective weights, or packed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bitmaps.bert import Bert, checkpoint
from bitmaps.bert.finding import locate
from bitmaps.calling import called
from bitmaps.errors import InputError
from bitmaps.packed import format as packed
from bitmaps.packed.activations import act_named
from bitmaps.quantize.convert import restore_activations
from bitmaps.vocabulary import HeadSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load(
    source: str | Path,
    *,
    adapter: str | Path | None = None,
    head: str = HeadSource.checkpoint,
    act: str | None = None,
) -> Bert:
    """Open a model in evaluation mode, for the task that its folder names.

    Args:
        source: a packed folder (``<run>/packed``), a Hugging Face folder or Hub id, a run folder,
            or ``package:<package>/<folder>``. A model that is not packed is in fp32.
        adapter: a safetensors file to add to it (``apply_adapter``). The shipped ones are in
            ``bitmaps.ADAPTERS``.
        head: ``"new"`` initializes a masked-language-model head if the checkpoint has none.
            Without a head or an adapter, a folder of sentence-transformers is a sentence encoder.
        act: for packed models: what activations are rounded to before they are multiplied with
            one-bit matrices (``bitmaps.packed.activations``). ``"a8"`` (int8 with a scale per
            token) is the default and fast, ``"a11"`` and ``"a16"`` are more precise, and ``"f32"``
            is exact. ``"a6"`` (int6) is coarser, and the default of models that were trained with
            ``activations=int6``. ``"a1"`` is for models that were trained with one-bit inputs.

    Raises:
        InputError: when it cannot be found or read, or is no BERT.
    """
    folder = locate(str(source))
    if head not in list(HeadSource):
        raise InputError(f"head={head!r} is unknown; valid are {', '.join(HeadSource)}")
    if not packed.is_packed(folder):
        if act is not None:
            raise InputError(
                f"act={act} is for packed models, and {folder} is not packed: "
                f"{called('pack')} <run folder>"
            )
        model = checkpoint.load(source, adapter=adapter, head=HeadSource(head))
        return with_tokenizer(restore_activations(model), folder)
    if adapter is not None or head != HeadSource.checkpoint:
        raise InputError(f"{folder} is packed: it takes neither an adapter nor a new head")
    return with_tokenizer(packed.load(folder, act_named(act)), folder)


def with_tokenizer(model: Bert, folder: Path) -> Bert:
    model.open_tokenizer = partial(read_tokenizer, str(folder))
    return model


def read_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    from bitmaps.data.tokenizing import tokenizer_of  # imports transformers, which takes seconds

    return tokenizer_of(folder)
