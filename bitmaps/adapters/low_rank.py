"""Low-rank factors beside the encoder matrices of a BERT: Hu et al. 2021, LoRA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitmaps.bert import Bert
from bitmaps.bert.checkpoint import hugging_face_name


class LowRankLinear(nn.Module):
    """``x -> W x + b + B (A x)`` with a frozen ``W``.

    ``A`` (rank, in) is drawn from N(0, 1/in). ``B`` (out, rank) starts at 0, so the layer starts as
    the one that it replaces.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.A = nn.Parameter(torch.randn(rank, linear.in_features) * linear.in_features**-0.5)
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + F.linear(F.linear(x, self.A), self.B)


def add_low_rank(model: Bert, rank: int) -> None:
    """Add factors to every encoder matrix, and freeze all else except biases, LayerNorms and the
    transform of the head."""
    for name, parameter in model.named_parameters():
        in_transform = name.startswith("head.transform")
        parameter.requires_grad = in_transform or name.endswith(("bias", "norm.weight"))
    for parent in list(model.encoder.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, LowRankLinear(child, rank))


def adapter_tensors(model: Bert) -> dict[str, Tensor]:
    """The trained parameters in fp16, under Hugging Face names.

    A pair of factors is called ``<module>.lora_A.weight`` and ``<module>.lora_B.weight``, as
    ``bitmaps.bert.checkpoint.apply_adapter`` reads it.
    """
    tensors = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        module, _, tensor = name.rpartition(".")
        if tensor in ("A", "B"):
            weight = hugging_face_name(f"{module}.weight")
            name = weight.replace(".weight", f".lora_{tensor}.weight")
        else:
            name = hugging_face_name(name.replace(".linear.", "."))
        tensors[name] = parameter.detach().half().contiguous()
    return tensors
