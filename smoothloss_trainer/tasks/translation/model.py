"""An attentive encoder-decoder: a bidirectional recurrent encoder, and a decoder cell that reads the previous word and
a weighted mean of the encoder's states.

Source: Bahdanau, Cho and Bengio 2015, "Neural machine translation by jointly learning to align and translate".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from smoothloss_trainer import devices
from smoothloss_trainer.schema import PartialShare, Size
from smoothloss_trainer.tasks import SequenceModel
from smoothloss_trainer.tasks.recurrence import StepAttention, StepLinear, gru_cell, lstm_cell, run_padded
from smoothloss_trainer.vocabulary import PAD


@dataclass
class TranslationModel:
    """Sizes of the attentive encoder-decoder.

    Args:
        cell: ``gru`` or ``lstm``, in encoder and decoder.
        embedding: Size of both languages' word embeddings.
        encoder: Hidden size of the encoder in each direction.
        decoder: Hidden size of the decoder.
        attention: Size of the attention's hidden layer.
        dropout: On embeddings, encoder states (between layers too) and the layer before the classifier.
        layers: Of the encoder.
        tie: Weights that are one: ``decoder``: target embedding and classifier; ``all``: source embedding too, which
            needs ``data.joint_vocabulary``.
    """

    cell: Literal["gru", "lstm"] = "gru"
    embedding: Size = 256
    encoder: Size = 256
    decoder: Size = 256
    attention: Size = 256
    dropout: PartialShare = 0.2
    layers: Annotated[int, Field(ge=1, le=64)] = 1
    tie: Literal["none", "decoder", "all"] = "none"


class Memory(NamedTuple):
    """What the decoder looks at."""

    values: Tensor  # (B, S, 2E) encoder states
    keys: Tensor  # (B, S, A) their projection for the attention
    bias: Tensor  # (B, S) 0 on words, -inf on padding
    start: Tensor  # (B, H) the decoder's first hidden state


class DecoderState(NamedTuple):
    """The decoder between two steps."""

    hidden: Tensor  # (B, H)
    cell: Tensor  # (B, H); (B, 0) with a GRU
    memory: Memory


class Layers(NamedTuple):
    """What a step of the decoder goes through, for all steps of a sequence."""

    recurrent: StepLinear
    attention: StepAttention
    context: StepLinear


class AttentiveModel(SequenceModel):
    """Bidirectional encoder, attentive decoder, deep output layer.

        c_t = sum_j softmax_j(v . tanh(W s_{t-1} + U h_j)) h_j
        s_t = cell([e_t; c_t], s_{t-1})
        o_t = tanh(A s_t + B c_t + C e_t),   logits = classifier(o_t)

    Everything that does not depend on the recurrence (embeddings' and encoder states' share of the gates, the output
    layer, the classifier) is computed for all positions at once.

    Raises:
        ValueError: when all embeddings are tied and the vocabularies differ in size.
    """

    def __init__(self, config: TranslationModel, source_size: int, target_size: int) -> None:
        super().__init__()
        self.is_lstm = config.cell == "lstm"
        encoder = nn.LSTM if self.is_lstm else nn.GRU
        width = 2 * config.encoder
        gates = (4 if self.is_lstm else 3) * config.decoder
        self.sizes = [gates, config.attention]
        self.dropout = nn.Dropout(config.dropout)
        self.source_embedding = nn.Embedding(source_size, config.embedding, padding_idx=PAD)
        self.encoder = encoder(
            config.embedding,
            config.encoder,
            config.layers,
            bidirectional=True,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        self.start = nn.Linear(width, config.decoder)
        self.keys = nn.Linear(width, config.attention, bias=False)
        self.target_embedding = nn.Embedding(target_size, config.embedding, padding_idx=PAD)
        self.word_gates = nn.Linear(config.embedding, gates)
        self.context_gates = nn.Linear(width, gates, bias=False)
        # The hidden state's share of the gates and the attention's query, in one product.
        self.recurrent = nn.Linear(config.decoder, gates + config.attention)
        self.energy = nn.Linear(config.attention, 1, bias=False)
        self.output = nn.Linear(config.decoder + width + config.embedding, config.embedding)
        self.classifier = nn.Linear(config.embedding, target_size)
        self._tie(config.tie)
        self._initialise()

    def _tie(self, tie: Literal["none", "decoder", "all"]) -> None:
        # The classifier then trains PAD's row of the embeddings as well. No output depends on it: the encoder packs its
        # input, the attention masks it, and the decoder reads PAD only where it has nothing left to say.
        if tie != "none":
            self.classifier.weight = self.target_embedding.weight
        if tie == "all":
            sizes = [self.source_embedding.num_embeddings, self.target_embedding.num_embeddings]
            if sizes[0] != sizes[1]:
                raise ValueError(f"tie all needs vocabularies of one size, got {sizes[0]} and {sizes[1]}")
            self.source_embedding.weight = self.target_embedding.weight

    def _initialise(self) -> None:
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.weight, std=0.1)
            with torch.no_grad():
                embedding.weight[PAD].zero_()

    def encode(self, *source: Tensor) -> Memory:
        """Tokens (B, S) with EOS, padded, and their lengths (B,)."""
        tokens, lengths = source
        embedded = self.dropout(self.source_embedding(tokens))
        values = self._read(embedded, lengths)
        padding = torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]
        mean = values.sum(1) / lengths[:, None]
        values = self.dropout(values)
        bias = torch.zeros_like(padding, dtype=values.dtype).masked_fill(padding, float("-inf"))
        return Memory(values, self.keys(values), bias, torch.tanh(self.start(mean)))

    def _read(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """The encoder's states (B, S, 2E), zeros behind each sentence."""
        if not devices.on_host(lengths):
            return run_padded(self.encoder, embedded, lengths)
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        states, width = self.encoder(packed)[0], embedded.shape[1]
        values: Tensor = pad_packed_sequence(states, batch_first=True, total_length=width)[0]
        return values

    def decode(self, memory: Memory, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Teacher forcing: (B, T) tokens to (B, T, D) hidden states of the output layer."""
        words = self.dropout(self.target_embedding(inputs))
        state = self.initial_state(memory)
        hidden, cell = state.hidden, state.cell
        layers = self._layers(memory)
        hiddens, contexts = [], []
        for word_gates in self.word_gates(words).unbind(1):
            hidden, cell, context = self._advance(word_gates, hidden, cell, layers)
            hiddens.append(hidden)
            contexts.append(context)
        return self._output(torch.stack(hiddens, 1), torch.stack(contexts, 1), words)

    def initial_state(self, memory: Memory) -> DecoderState:
        """The decoder before its first word."""
        cell = torch.zeros_like(memory.start) if self.is_lstm else memory.start[:, :0]
        return DecoderState(memory.start, cell, memory)

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """One word (B,) to the logits (B, V) of the next."""
        words = self.dropout(self.target_embedding(tokens))
        layers = self._layers(state.memory)
        hidden, cell, context = self._advance(self.word_gates(words), state.hidden, state.cell, layers)
        logits = self.classifier(self._output(hidden, context, words))
        return logits, DecoderState(hidden, cell, state.memory)

    def _layers(self, memory: Memory) -> Layers:
        return Layers(
            StepLinear(self.recurrent.weight, self.recurrent.bias),
            StepAttention(memory.keys, memory.values, memory.bias, self.energy.weight),
            StepLinear(self.context_gates.weight, None),
        )

    def _advance(
        self, word_gates: Tensor, hidden: Tensor, cell: Tensor, layers: Layers
    ) -> tuple[Tensor, Tensor, Tensor]:
        recurrent, query = torch.split(layers.recurrent(hidden), self.sizes, -1)
        context = layers.attention(query)
        gates = word_gates + layers.context(context)
        if self.is_lstm:
            hidden, cell = lstm_cell(gates + recurrent, cell)
        else:
            hidden = gru_cell(gates, recurrent, hidden)
        return hidden, cell, context

    def _output(self, hidden: Tensor, context: Tensor, words: Tensor) -> Tensor:
        output: Tensor = self.dropout(torch.tanh(self.output(torch.cat((hidden, context, words), -1))))
        return output
