"""The test scores of training runs as one table and one JSON file, for the pages.

python -m benchmarks.collect_runs runs/mle runs/tok --out benchmarks/results/multi30k.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.measure import Row, markdown


def row_of(run: Path) -> Row:
    """Return name, validation loss of the best epoch, test scores and environment of a run directory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validations = [line for line in lines if "validation_loss" in line]
    scores = json.loads((run / "scores.test.json").read_text())
    environment = json.loads((run / "environment.json").read_text())
    environment.pop("command", None)  # paths of the machine it ran on
    return {
        "run": run.name,
        "epochs": validations[-1]["epoch"],
        "steps": validations[-1]["step"],
        "validation_loss": min(line["validation_loss"] for line in validations),
        **{key: value for key, value in scores.items() if isinstance(value, (int, float, str))},
        "environment": environment,
    }


def main() -> None:
    """Print the table, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run directories that were tested")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    arguments = parser.parse_args()
    rows = [row_of(run) for run in arguments.runs]
    columns = {key: key for key, value in rows[0].items() if not isinstance(value, (dict, str)) or key == "run"}
    print(markdown(rows, columns))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    part = arguments.out.with_suffix(".part")
    part.write_text(json.dumps(rows, indent=1) + "\n")
    part.replace(arguments.out)


if __name__ == "__main__":
    main()
