"""Write COCO captions as plain text: the split's restval captions for training, one test caption an image.

    python examples/distillation/coco_text.py captions_val2014.ptb.json.gz coco80_labels_2014.json.gz build/coco

The first file maps the ids of images to tokenised captions, the second holds Karpathy's split of them. Images that are
in its test part, or in its validation part, lend nothing to the training text.
"""

from __future__ import annotations

import sys
from pathlib import Path

from smoothloss._files import write_atomically
from smoothloss_trainer.cli.options import Parser, whole
from smoothloss_trainer.cli.run import explain
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.files import read_json

SPLIT = "karpathy_split_of_val2014"


def write_parts(captions_file: str, split_file: str, folder: Path, images: int | None = None) -> None:
    """Write ``train.txt``, of the first so many images, ``validation.txt`` and ``test.txt``."""
    wanted = {"train.txt": ("restval", images, None), "validation.txt": ("val", None, 1), "test.txt": ("test", None, 1)}
    captions, split = read_json(captions_file, "captions"), read_json(split_file, "split")
    try:
        parts = {
            name: [line for image in split[SPLIT][part][:first] for line in captions[str(image)][:most]]
            for name, (part, first, most) in wanted.items()
        }
    except (KeyError, TypeError):
        raise RecipeError(f"split: {split_file} and {captions_file} do not fit: expected {SPLIT!r} and ids") from None
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in parts.items():
        write_atomically(folder / name, "".join(f"{line}\n" for line in lines).encode())


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = Parser(prog="coco_text", description=__doc__.partition("\n")[0])
    parser.add_argument("captions", help="JSON: {image id: [captions]}")
    parser.add_argument("split", help=f"JSON with {SPLIT!r}")
    parser.add_argument("out", type=Path, help="folder for the text files")
    parser.add_argument("--images", type=whole(1), help="of the training part, the first ones; default: all")
    options = parser.parse_args(arguments)
    try:
        write_parts(options.captions, options.split, options.out, options.images)
    except (Exception, KeyboardInterrupt) as error:
        status, line = explain(error)
        print(f"coco_text: error: {line}", file=sys.stderr)
        return status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
