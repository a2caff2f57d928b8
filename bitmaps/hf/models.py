"""One class for each task, as ``transformers`` names them."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from bitmaps.bert import Bert
from bitmaps.hf.base import BitmapsPreTrainedModel
from bitmaps.hf.config import BitmapsConfig
from bitmaps.vocabulary import Task


class BitmapsModel(BitmapsPreTrainedModel):
    """The body of a model of any task: the function of ``BertModel`` without its pooler."""

    @can_return_tuple  # type: ignore[untyped-decorator]  # takes `return_dict`
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutput:
        """The states of the last layer, (batch, length, hidden), and with ``output_hidden_states``
        those of all layers.

        Args:
            input_ids, attention_mask, token_type_ids: see ``Bert.encode``.
            position_ids: see ``states``.
            output_hidden_states: by default as ``config`` says.

        Raises:
            InputError: for ``inputs_embeds`` and ``output_attentions``.
            TypeError: for an argument that is not here.
        """
        states = self.states(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            output_attentions,
        )  # fmt: skip
        return BaseModelOutput(
            last_hidden_state=states[-1], hidden_states=self.shown(states, output_hidden_states)
        )


class BitmapsForMaskedLM(BitmapsPreTrainedModel):
    """The function of ``BertForMaskedLM``."""

    tasks = (Task.masked_lm,)

    @can_return_tuple  # type: ignore[untyped-decorator]  # takes `return_dict`
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> MaskedLMOutput:
        """Logits (batch, length, vocabulary); other arguments as those of ``BitmapsModel``.

        Args:
            labels: (batch, length), -100 where there is no loss. The loss is the mean.
        """
        states = self.states(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            output_attentions,
        )  # fmt: skip
        logits = self.bert.head(states[-1])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=self.shown(states, output_hidden_states)
        )

    def get_output_embeddings(self) -> nn.Module:
        return self.bert.get_submodule("head.decoder")


class BitmapsForSequenceClassification(BitmapsPreTrainedModel):
    """The function of ``BertForSequenceClassification``."""

    tasks = (Task.classification,)

    @can_return_tuple  # type: ignore[untyped-decorator]  # takes `return_dict`
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Logits (batch, classes); other arguments as those of ``BitmapsModel``.

        Args:
            labels: (batch), numbers of classes for the mean cross entropy, or scores for the mean
                squared error of a model of scores.
        """
        states = self.states(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            output_attentions,
        )  # fmt: skip
        logits = self.bert.head(states[-1])
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=self.shown(states, output_hidden_states)
        )


OF_TASK: dict[Task, type[BitmapsPreTrainedModel]] = {
    Task.masked_lm: BitmapsForMaskedLM,
    Task.sentence_embedding: BitmapsModel,
    Task.classification: BitmapsForSequenceClassification,
}


def to_transformers(model: Bert) -> BitmapsPreTrainedModel:
    """Wrap any model that ``bitmaps.load`` opens in the class of ``transformers`` for its task.

    For example::

        pipeline("fill-mask", model=bitmaps.to_transformers(model), tokenizer=folder)
    """
    return OF_TASK[model.config.task](BitmapsConfig.of(model.config), model).eval()


for opener, kind in (
    (AutoModel, BitmapsModel),
    (AutoModelForMaskedLM, BitmapsForMaskedLM),
    (AutoModelForSequenceClassification, BitmapsForSequenceClassification),
):
    opener.register(BitmapsConfig, kind, exist_ok=True)
