"""The recorded scores of coco-caption on real captions, each image and the corpus, to 1e-9."""

import gzip
import json

import pytest
import torch

from smoothloss.rewards import Cider, References, bleu_statistics, corpus_bleu, rouge_l, sentence_bleu

NAMES = ["fakecap", "paper_base", "paper_comb", "paper_seq", "paper_tok"]


def read(path):
    content = path.read_bytes()
    return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)


@pytest.fixture(scope="module")
def captions(data_dir):
    return read(data_dir / "coco" / "captions_val2014.ptb.json.gz")


def texts(name, golden, data_dir, captions):
    """Tokenised candidates and references in the order of the recorded scores."""
    if name != "fakecap":
        return golden["tokenized_candidates"], [captions[str(image)] for image in golden["image_ids"]]
    found = {entry["image_id"]: entry for entry in read(data_dir / "golden" / "fakecap_ptb_tokenized_refs.json")}
    entries = [found[image] for image in golden["image_ids"]]
    return [entry["test"] for entry in entries], [entry["refs"] for entry in entries]


@pytest.fixture(scope="module", params=NAMES)
def scored(request, data_dir, captions):
    golden = read(data_dir / "golden" / f"scores_{request.param}.json.gz")
    candidates, references = texts(request.param, golden, data_dir, captions)
    vocabulary: dict[str, int] = {}

    def encode(text):
        return [vocabulary.setdefault(word, len(vocabulary)) for word in text.split()]

    packed = References([[encode(text) for text in captions] for captions in references])
    return golden, [encode(text) for text in candidates], packed


def check(found, golden, key):
    torch.testing.assert_close(found, torch.tensor(golden[key], dtype=torch.float64), rtol=1e-9, atol=0.0)


def test_cider(scored):
    golden, candidates, references = scored
    found = Cider(references)(candidates, None, references)
    check(found, golden, "CIDEr")
    assert found.mean().item() == pytest.approx(golden["corpus"]["CIDEr"], rel=1e-9)


def test_rouge_l(scored):
    golden, candidates, references = scored
    found = rouge_l(candidates, None, references)
    check(found, golden, "ROUGE_L")
    assert found.mean().item() == pytest.approx(golden["corpus"]["ROUGE_L"], rel=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_sentence_bleu(scored, n):
    golden, candidates, references = scored
    check(sentence_bleu(candidates, None, references, n=n, smoothing="coco"), golden, f"Bleu_{n}")


def test_corpus_bleu(scored):
    golden, candidates, references = scored
    found = corpus_bleu(bleu_statistics(candidates, None, references), smoothing="coco")
    expected = [golden["corpus"][f"Bleu_{n}"] for n in range(1, 5)]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_the_authors_own_scores(data_dir, captions):
    """The per-image scores that the authors published beside their outputs."""
    published = read(data_dir / "paper_outputs" / "base_bw3.sc_json")
    outputs = {str(entry["image_id"]): entry["caption"] for entry in read(data_dir / "paper_outputs" / "base_bw3.json")}
    assert published.keys() == outputs.keys()
    vocabulary: dict[str, int] = {}

    def encode(text):
        return [vocabulary.setdefault(word, len(vocabulary)) for word in text.split()]

    references = References([[encode(text) for text in captions[image]] for image in published])
    candidates = [encode(outputs[image]) for image in published]
    found = Cider(references)(candidates, None, references)
    expected = torch.tensor([entry["CIDEr"] for entry in published.values()], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0.0)
