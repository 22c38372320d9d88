"""What lives in the host's memory stays there whatever torch's default device: meta holds no numbers at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import smoothloss.functional as F
from smoothloss import SimilarityTable, distillation, embeddings
from smoothloss.distillation import Teacher
from smoothloss.rewards import Cider, References, rouge_l, sentence_bleu
from smoothloss.sampling import BatchPool, EditSampler, HammingSampler, SimilarPool, VocabularyPool, importance_weights

V = 9
GENERATOR = torch.Generator().manual_seed(0)
Y = torch.randint(1, V, (2, 5), generator=GENERATOR)
LOGITS, HIDDEN, WEIGHT = (torch.randn(*shape, generator=GENERATOR) for shape in ((2, 5, V), (2, 5, 4), (V, 4)))
IDS = [[[1, 2, 3], [1, 2]], [[2, 3]]]


def references() -> References:
    return References(IDS, device="cpu")


def table(tail: str = "uniform") -> SimilarityTable:
    return SimilarityTable.from_embeddings(WEIGHT, k=3, tau=0.3, exclude=[0], tail=tail)  # type: ignore[arg-type]


def drawn(sampler: HammingSampler | EditSampler) -> Tensor:
    return sampler(Y, None, 2, torch.Generator("cpu").manual_seed(1)).tokens


def glove() -> Tensor:
    text = [["a", "b", "a", "c"]] * 20
    return embeddings.train_glove(text, ["a", "b", "c"], dim=4, epochs=1).vectors


CALLS: dict[str, Callable[[], Tensor]] = {
    "mle": lambda: F.cross_entropy(LOGITS, Y, label_smoothing=0.1),
    "linear": lambda: F.linear_cross_entropy(HIDDEN, WEIGHT, Y),
    "tok": lambda: F.cross_entropy(LOGITS, Y, table=table(), alpha=0.3, kl=True),
    "tok, dense tail": lambda: F.cross_entropy(LOGITS, Y, table=table("exact"), alpha=0.3, kl=True),
    "statistics": lambda: F.linear_token_statistics(HIDDEN, WEIGHT, Y[..., None]).entropy,
    "teacher": lambda: distillation.loss(LOGITS, Teacher.from_logits(LOGITS, 3)),
    "divergence": lambda: distillation.loss(
        LOGITS, Teacher.from_logits(LOGITS, 3), divergence="jensen_shannon", missing="uniform"
    ),
    "hamming": lambda: drawn(HammingSampler(0.5, VocabularyPool(V, exclude=[0]))),
    "hamming, reference": lambda: drawn(HammingSampler(0.5, VocabularyPool(V, exclude=[0]), impl="reference")),
    "hamming, similar": lambda: drawn(HammingSampler(0.5, SimilarPool(table(), exclude=[0]))),
    "edit": lambda: drawn(EditSampler(0.5, BatchPool(exclude=[0]))),
    "bleu": lambda: sentence_bleu(Y, None, references()),
    "bleu of lists": lambda: sentence_bleu([[1, 2], [2, 3]], None, references()),
    "rouge": lambda: rouge_l([[1, 2], [2, 3]], None, references()),
    "cider": lambda: Cider(references())(Y, None, references()),
    "cider of lists": lambda: Cider(references())([[1, 2], [2, 3]], None, references()),
    "weights": lambda: importance_weights(LOGITS[0, :2, :2], LOGITS[1, :2, :2], tau=0.5),
    "glove": glove,
}


@pytest.mark.parametrize("name", CALLS)
def test_the_default_device_is_of_no_account(name: str) -> None:
    expected = CALLS[name]()
    torch.set_default_device("meta")
    try:
        got = CALLS[name]()
    finally:
        torch.set_default_device(None)
    assert torch.equal(got, expected)
