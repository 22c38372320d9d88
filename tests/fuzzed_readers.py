"""Every reader of users' files as a function of bytes, with files to start from, for whatever makes new ones of them.

`python fuzzed_readers.py NAME SECONDS` has atheris make them, which follows the branches that they take.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":  # before anything of the package is imported
    import atheris
    import torch  # noqa: F401  not to be followed

    atheris.instrument_imports(include=["smoothloss"]).__enter__()  # for all that is imported from here on

from smoothloss.embeddings import load_vectors
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.recipe import load_recipe
from smoothloss_trainer.score_inputs import read_files
from smoothloss_trainer.tasks.captioning.arrays import ArrayFeatures
from smoothloss_trainer.tasks.captioning.data import CaptioningData, load_captions, read_names
from smoothloss_trainer.tasks.captioning.images import read_rgb
from smoothloss_trainer.tasks.translation.corpus import read_corpus
from smoothloss_trainer.tasks.translation.data import TranslationData
from smoothloss_trainer.vocabulary import Vocabulary

CUT = b"\xfe\xfe"  # between the two files of parallel text
WORDS = ["the", "dog", "größe", "route 66", ""]


@dataclass(frozen=True)
class Reader:
    """A reader.

    Args:
        read: Reads a file in a folder of its own.
        name: The file's name.
        seeds: Files that it takes.
        tokens: What such files are made of.
    """

    read: Callable[[Path], object]
    name: str
    seeds: list[bytes]
    tokens: list[bytes]

    def __call__(self, folder: Path, content: bytes) -> bool:
        """Whether a file is taken; anything but one line of our own about it is raised."""
        path = folder / self.name
        path.write_bytes(content)
        try:
            self.read(path)
        except (RecipeError, ValueError) as error:
            ours = isinstance(error, RecipeError) or str(error).startswith("path: ")
            if not ours or len(str(error).splitlines()) != 1:
                raise
            return False
        return True


def as_json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def packed(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def parallel(path: Path, **changes: Any) -> object:
    source, _, target = path.read_bytes().partition(CUT)
    path.with_name("x.de").write_bytes(source)
    path.with_name("x.en").write_bytes(target)
    stem = str(path.with_name("x"))
    return read_corpus(
        TranslationData(stem, "de", "en", validation=stem, skip_unusable=len(source) % 2 == 0, **changes)
    )


def columns(path: Path) -> object:
    held_out = {"validation": 1}
    skip = len(path.read_bytes()) % 2 == 0
    data = TranslationData(
        str(path), "de", "en", format="tsv", columns=["en", "de"], held_out=held_out, skip_unusable=skip
    )
    return read_corpus(data)


def captions(path: Path, kind: str) -> object:
    labels = path.with_name("labels.json")
    if not labels.exists():
        splits = {"restval": ["1"], "val": ["2"], "test": [3]}
        content = {"classes": ["a", "b"], "val2014": {str(n): [n % 2] for n in range(9)}}
        labels.write_bytes(as_json({**content, "karpathy_split_of_val2014": splits}))
    skip = len(path.read_bytes()) % 2 == 0
    given = None if kind == "coco_boxes" else str(labels)
    loaded = load_captions(CaptioningData(str(path), format=kind, labels=given, skip_unusable=skip))
    for images in loaded.splits.values():
        loaded.features.padded(images)
    for words in (words for image in loaded.captions.values() for words in image):
        " ".join(words).encode()  # as it will be written
    return loaded


def features(path: Path) -> object:
    found = ArrayFeatures(path, ["1", "2"])
    return [found.problem(image, read=True) for image in ("1", "2")]


def scored(path: Path, other: str) -> object:
    fixed = path.with_name(other)
    fixed.write_bytes(b"a dog\nb\n" if other.endswith("txt") else b'{"0": ["a dog"], "1": ["b", "c"]}')
    return read_files(str(path), [str(fixed)])


def recipe(path: Path) -> object:
    for name in ("a.de", "a.en", "b.de", "b.en"):
        path.with_name(name).touch()
    return load_recipe(str(path), [])


def picture(mode: str, kind: str) -> bytes:
    from PIL import Image

    pixels = np.arange(12 * 10, dtype=np.uint8).reshape(10, 12)
    image = Image.fromarray(pixels.astype(np.uint16) * 500) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


IMAGES = [{"id": n, "file_name": f"{n}.jpg", "split": split} for n, split in enumerate(["train", "val", "test"], 1)]
COCO = {"images": IMAGES, "annotations": [{"image_id": n, "id": n, "caption": "A dog's tail."} for n in (1, 2, 3)]}
KARPATHY = {
    "images": [
        {
            "imgid": e["id"],
            "filename": e["file_name"],
            "split": e["split"],
            "sentences": [{"tokens": ["a"]}, {"raw": "B!"}],
        }
        for e in IMAGES
    ]
}
BOXES = {
    "classes": ["x", "y"],
    "images": [
        {
            "image_id": e["id"],
            "split": e["split"],
            "captions": ["a b"],
            "boxes": [[0, 1, 2, 3, 1]],
            "width": 9,
            "height": 9,
        }
        for e in IMAGES
    ],
}
RECIPE = b"""\
task: translation
data: {train: a, validation: b, source: de, target: en}
model: {embedding: 8}
loss: {name: tok, alpha: 0.5, beta: 0.1}
"""
BINARY = b"2 2\nthe " + np.float32([1, 2]).tobytes() + b"\ndog " + np.float32([3, 4]).tobytes()
TEXT = "the 1 2\nroute 66 0.5 -1e-3\ngröße 5 6\ndog 1 1\n".encode()
JSON_TOKENS = [b"null", b"true", b"[]", b"{}", b'"\\ud800"', b"1e999", b"NaN", b"-1", b'"', b"[[", b'{"a":', b"9" * 400]
TEXT_TOKENS = [
    b"\n",
    b"\r\n",
    b"\r",
    b"\t",
    b" ",
    b"\0",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xc2\xa0",
    b"\xe2\x80\xa8",
    b"1 ",
    b"nan",
]
ROWS = io.BytesIO()
np.save(ROWS, np.ones((2, 3, 4), np.float32))

READERS = {
    "vectors": Reader(
        partial(load_vectors, vocabulary=WORDS),
        "v",
        [TEXT, b"4 2\n" + TEXT, BINARY, zipped(v=TEXT), gzip.compress(TEXT)],
        TEXT_TOKENS,
    ),
    "npz": Reader(
        partial(load_vectors, vocabulary=WORDS),
        "v.npz",
        [packed(words=np.array(["the", "dog"]), vectors=np.ones((2, 3), np.float32), counts=np.array([1, 2]))],
        [b"<f4", b"|O", b"(2, 3)", b"(99999999999,)"],
    ),
    "parallel": Reader(parallel, "x", [b"a b\nc\n" + CUT + b"A B\nC\n"], [*TEXT_TOKENS, CUT]),
    "tsv": Reader(columns, "x.tsv", [b"a\tA\nb\tB\tx\nc\tC\n", gzip.compress(b"a\tA\nb\tB\n")], TEXT_TOKENS),
    "coco": Reader(partial(captions, kind="coco_captions"), "c.json", [as_json(COCO)], JSON_TOKENS),
    "karpathy": Reader(partial(captions, kind="karpathy"), "k.json", [as_json(KARPATHY)], JSON_TOKENS),
    "boxes": Reader(partial(captions, kind="coco_boxes"), "b.json", [as_json(BOXES)], JSON_TOKENS),
    "labels": Reader(
        partial(captions, kind="coco_labels"),
        "l.json",
        [as_json({"1": ["a b"], "2": ["b"], "3": ["c", "d"]})],
        JSON_TOKENS,
    ),
    "names": Reader(
        lambda path: read_names(str(path), "key", {"a b.jpg"}),
        "n.json",
        [as_json(["a", 3]), as_json(COCO)],
        JSON_TOKENS,
    ),
    "lists": Reader(lambda path: read_names(str(path), "key", {"a b.jpg"}), "n.txt", [b"a b.jpg\nx 3\n"], TEXT_TOKENS),
    "recipes": Reader(
        recipe,
        "r.yaml",
        [RECIPE, b"base: r.yaml\n"],
        [b"&a ", b"*a", b"[*a,*a]", b"!!python/object:x ", b"{", b"? ", b"<<: ", b"~"],
    ),
    "score_json": Reader(
        partial(scored, other="t.txt"),
        "h.json",
        [as_json({"0": "a", "1": "b"}), as_json([{"image_id": n, "caption": "a"} for n in (1, 2)])],
        JSON_TOKENS,
    ),
    "score_text": Reader(partial(scored, other="r.json"), "h.txt", [b"a dog\nb\n"], TEXT_TOKENS),
    "score_lines": Reader(
        partial(scored, other="t.txt"),
        "n.jsonl",
        [b'{"id": "0", "hypotheses": [{"text": "a"}]}\n{"id": 1, "hypotheses": []}\n'],
        JSON_TOKENS,
    ),
    "vocabulary": Reader(
        Vocabulary.load,
        "v.json",
        [as_json({"words": ["<pad>", "<bos>", "<eos>", "<unk>", "a"], "counts": [0, 0, 0, 1, 2]})],
        JSON_TOKENS,
    ),
    "rows": Reader(
        features, "f.npy", [ROWS.getvalue()], [b"<f4", b"|O", b"<U9", b"(2, 3, 4)", b"()", b"(2, 99999999999, 4)"]
    ),
    "arrays": Reader(features, "f.npz", [packed(**{"1": np.ones(3), "2": np.ones((2, 3))})], [b"<f4", b"|O", b"(3,)"]),
    "images": Reader(
        read_rgb,
        "i.png",
        [
            picture("L", "PNG"),
            picture("I;16", "PNG"),
            picture("I;16", "TIFF"),
            picture("F", "TIFF"),
            picture("P", "GIF"),
            picture("RGB", "JPEG"),
        ],
        [bytes(4), b"\xff" * 4],
    ),
}


def changed(reader: Reader, draw: random.Random) -> bytes:
    """A seed with something done to it."""
    content = draw.choice(reader.seeds)
    if reader.tokens is JSON_TOKENS and draw.random() < 0.5 and not reader.name.endswith("l"):
        value = json.loads(content)
        for _ in range(draw.randint(1, 3)):
            value = replaced(value, draw)
        content = as_json(value)
        if draw.random() < 0.7:
            return content
    for _ in range(draw.choice([0, 1, 1, 2, 5])):
        at, end = sorted((draw.randint(0, len(content)), draw.randint(0, len(content))))
        content = draw.choice(
            [
                content[:at] + draw.choice(reader.tokens) + content[at:],
                content[:at] + draw.choice(reader.tokens) + content[end:],
                content[:at] + content[end:],
                content[:end] + content[at:],
                content[:at],
                content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :],
                gzip.compress(content),
                b"\xef\xbb\xbf" + content,
            ]
        )
    return content


def replaced(value: Any, draw: random.Random) -> Any:
    """JSON with one value in it replaced, or taken away."""
    others = [None, True, 3, -1, 2.5, "x", "\ud800", "", [], {}, [value], {"images": value}]
    if not isinstance(value, dict | list) or not value or draw.random() < 0.1:
        return draw.choice(others)
    copy = dict(value) if isinstance(value, dict) else list(value)
    key = draw.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
    if draw.random() < 0.2:
        del copy[key]
    else:
        copy[key] = replaced(copy[key], draw)
    return copy


def follow(name: str, seconds: float) -> Iterator[None]:
    """Let atheris make files for so long; the process ends with the run."""
    reader = READERS[name]
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(reader.seeds):
            (corpus / str(number)).write_bytes(seed)
        own = Path(folder) / "own"
        own.mkdir()
        arguments = [
            f"-max_total_time={seconds:.0f}",
            "-max_len=4096",
            "-verbosity=0",
            "-print_final_stats=1",
            str(corpus),
        ]
        atheris.Setup([sys.argv[0], *arguments], lambda content: reader(own, content) and None)
        atheris.Fuzz()
    yield


if __name__ == "__main__":
    list(follow(sys.argv[1], float(sys.argv[2])))
