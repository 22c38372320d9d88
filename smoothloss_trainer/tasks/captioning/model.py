"""The captioners of the paper: an LSTM that reads the image as its first word, and one with top-down attention.

Vinyals et al. 2015, "Show and Tell: A Neural Image Caption Generator"; Anderson et al. 2018, "Bottom-Up and Top-Down
Attention for Image Captioning and Visual Question Answering".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from smoothloss_trainer.schema import PartialShare, Size
from smoothloss_trainer.tasks import SequenceModel, select_rows
from smoothloss_trainer.tasks.recurrence import ByLength, StepAttention, StepLinear, lstm_cell
from smoothloss_trainer.vocabulary import PAD


@dataclass
class CaptioningModel:
    """Sizes of the captioner.

    Args:
        attention: Top-down attention over regions; without it, one LSTM that reads one vector per image.
        embedding: Size of word embeddings and of the projected features.
        hidden: Size of each LSTM.
        attention_hidden: Size of the attention's hidden layer.
        dropout: On word embeddings, projected features and the states before the classifier.
    """

    attention: bool = False
    embedding: Size = 512
    hidden: Size = 512
    attention_hidden: Size = 512
    dropout: PartialShare = 0.5


class LSTMState(NamedTuple):
    """Hidden state and cell of an LSTM, both (B, H)."""

    hidden: Tensor
    cell: Tensor


class ShowAndTell(SequenceModel):
    """One LSTM; the projected feature is its first input, words follow.

        h_0 = LSTM(W v),   h_t = LSTM(e_t, h_{t-1}),   logits_t = classifier(h_t)

    Args:
        config: Sizes.
        feature_size: Length of an image's feature vector.
        vocabulary_size: V.
    """

    def __init__(self, config: CaptioningModel, feature_size: int, vocabulary_size: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Linear(feature_size, config.embedding)
        self.embedding = word_embedding(vocabulary_size, config.embedding)
        self.lstm = nn.LSTM(config.embedding, config.hidden, batch_first=True)
        self.classifier = nn.Linear(config.hidden, vocabulary_size)

    def encode(self, *source: Tensor) -> LSTMState:
        """Features (B, F) to the LSTM's state after reading them."""
        (features,) = source
        image = self.dropout(self.project(features))
        return self._read(image[:, None], None)[1]

    def decode(self, memory: LSTMState, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Teacher forcing: (B, T) tokens to (B, T, H)."""
        words = self.dropout(self.embedding(inputs))
        if lengths is None or not torch.is_grad_enabled():
            return self.dropout(self._read(words, memory)[0])
        return self.dropout(self._read_going_on(words, memory, ByLength(lengths, inputs.shape[1])))

    def _read_going_on(self, words: Tensor, memory: LSTMState, rows: ByLength) -> Tensor:
        word_weight, recurrent_weight, *biases = self.lstm.all_weights[0]
        gates = nn.functional.linear(rows.pack(words), word_weight, torch.add(*biases)).split(rows.going_on)
        recurrent = StepLinear(recurrent_weight, None)
        state, hiddens = select_rows(memory, rows.order), []
        for own in gates:
            state = LSTMState(state.hidden[: len(own)], state.cell[: len(own)])
            state = LSTMState(*lstm_cell(own + recurrent(state.hidden), state.cell))
            hiddens.append(state.hidden)
        return rows.unpack(hiddens)

    def initial_state(self, memory: LSTMState) -> LSTMState:
        """The state that has read the image."""
        return memory

    def step(self, tokens: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """One word (B,) to the logits (B, V) of the next."""
        hidden, state = self._read(self.dropout(self.embedding(tokens))[:, None], state)
        return self.classifier(self.dropout(hidden[:, 0])), state

    def _read(self, inputs: Tensor, state: LSTMState | None) -> tuple[Tensor, LSTMState]:
        before = None if state is None else (state.hidden[None].contiguous(), state.cell[None].contiguous())
        hidden, (last, cell) = self.lstm(inputs, before)
        return hidden, LSTMState(last[0], cell[0])


class Regions(NamedTuple):
    """What the attention looks at."""

    values: Tensor  # (B, R, E) projected features
    keys: Tensor  # (B, R, A) their projection for the attention
    bias: Tensor  # (B, R) 0 on regions, -inf on padding
    gates: Tensor  # (B, 4H) the mean feature's share of the attention LSTM's gates


class TopDownState(NamedTuple):
    """Both LSTMs between two steps, and the regions."""

    attention: LSTMState
    language: LSTMState
    regions: Regions


class Layers(NamedTuple):
    """What a step of top-down attention goes through, for all steps of a caption."""

    attention_gates: StepLinear
    query: StepLinear
    attention: StepAttention
    language_gates: StepLinear


class TopDown(SequenceModel):
    """Two LSTMs and soft attention over regions between them.

        h1_t = LSTM1([h2_{t-1}; mean v; e_t], h1_{t-1})
        c_t = sum_i softmax_i(w . tanh(U v_i + W h1_t)) v_i
        h2_t = LSTM2([c_t; h1_t], h2_{t-1}),   logits_t = classifier(h2_t)

    The words' and the mean feature's shares of LSTM1's gates are computed for all positions at once.

    Args:
        config: Sizes.
        feature_size: Length of a region's feature vector.
        vocabulary_size: V.
    """

    def __init__(self, config: CaptioningModel, feature_size: int, vocabulary_size: int) -> None:
        super().__init__()
        size, width = config.hidden, config.embedding
        self.dropout = nn.Dropout(config.dropout)
        self.hidden = size
        self.project = nn.Linear(feature_size, width)
        self.embedding = word_embedding(vocabulary_size, width)
        self.word_gates = nn.Linear(width, 4 * size)
        self.mean_gates = nn.Linear(width, 4 * size, bias=False)
        self.attention_gates = nn.Linear(2 * size, 4 * size, bias=False)
        self.language_gates = nn.Linear(width + 2 * size, 4 * size)
        self.keys = nn.Linear(width, config.attention_hidden)
        self.query = nn.Linear(size, config.attention_hidden, bias=False)
        self.energy = nn.Linear(config.attention_hidden, 1, bias=False)
        self.classifier = nn.Linear(size, vocabulary_size)

    def encode(self, *source: Tensor) -> Regions:
        """Features (B, R, F) and which of them are real (B, R)."""
        features, present = source
        values = self.dropout(torch.relu(self.project(features)))
        weights = present.to(values.dtype)
        mean = torch.einsum("br,bre->be", weights / weights.sum(1, keepdim=True), values)
        bias = torch.zeros_like(weights).masked_fill(~present, float("-inf"))
        return Regions(values, self.keys(values), bias, self.mean_gates(mean))

    def decode(self, memory: Regions, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Teacher forcing: (B, T) tokens to (B, T, H)."""
        words = self.dropout(self.embedding(inputs))
        if lengths is None:
            gates = self.word_gates(words).unbind(1)
            return self.dropout(torch.stack(self._read(gates, memory), 1))
        rows = ByLength(lengths, inputs.shape[1])
        gates = self.word_gates(rows.pack(words)).split(rows.going_on)
        return self.dropout(rows.unpack(self._read(gates, select_rows(memory, rows.order))))

    def _read(self, words: Sequence[Tensor], memory: Regions) -> list[Tensor]:
        """The hidden states after each step's words, of which there may be fewer from step to step."""
        (attention, language, _), layers = self.initial_state(memory), self._layers(memory)
        hiddens: list[Tensor] = []
        for own in words:
            count = len(own)
            attention, language = (LSTMState(*(part[:count] for part in state)) for state in (attention, language))
            attention, language = self._advance(own + memory.gates[:count], attention, language, layers)
            hiddens.append(language.hidden)
        return hiddens

    def initial_state(self, memory: Regions) -> TopDownState:
        """Both LSTMs at zero."""
        zeros = memory.values.new_zeros(len(memory.values), self.hidden)
        return TopDownState(LSTMState(zeros, zeros), LSTMState(zeros, zeros), memory)

    def step(self, tokens: Tensor, state: TopDownState) -> tuple[Tensor, TopDownState]:
        """One word (B,) to the logits (B, V) of the next."""
        word_gates = self.word_gates(self.dropout(self.embedding(tokens))) + state.regions.gates
        before, language, regions = state
        state = TopDownState(*self._advance(word_gates, before, language, self._layers(regions)), regions)
        return self.classifier(self.dropout(state.language.hidden)), state

    def _layers(self, regions: Regions) -> Layers:
        return Layers(
            StepLinear(self.attention_gates.weight, None),
            StepLinear(self.query.weight, None),
            StepAttention(regions.keys, regions.values, regions.bias, self.energy.weight),
            StepLinear(self.language_gates.weight, self.language_gates.bias),
        )

    def _advance(
        self, word_gates: Tensor, before: LSTMState, language: LSTMState, layers: Layers
    ) -> tuple[LSTMState, LSTMState]:
        gates = word_gates + layers.attention_gates(torch.cat((language.hidden, before.hidden), -1))
        attention = LSTMState(*lstm_cell(gates, before.cell))
        seen = layers.attention(layers.query(attention.hidden))
        gates = layers.language_gates(torch.cat((seen, attention.hidden, language.hidden), -1))
        return attention, LSTMState(*lstm_cell(gates, language.cell))


def word_embedding(vocabulary_size: int, size: int) -> nn.Embedding:
    """Small random embeddings; PAD's stays zero."""
    embedding = nn.Embedding(vocabulary_size, size, padding_idx=PAD)
    nn.init.normal_(embedding.weight, std=0.1)
    with torch.no_grad():
        embedding.weight[PAD].zero_()
    return embedding


def build_captioner(config: CaptioningModel, feature_size: int, vocabulary_size: int) -> ShowAndTell | TopDown:
    """The LSTM of Show and Tell, or top-down attention."""
    return (TopDown if config.attention else ShowAndTell)(config, feature_size, vocabulary_size)


def feature_size_of(weights: Mapping[str, Tensor]) -> int:
    """The length of the feature vectors that a captioner with these weights reads."""
    return int(weights["project.weight"].shape[1])
