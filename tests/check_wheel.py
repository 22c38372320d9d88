"""What an installed wheel must do: ``python tests/check_wheel.py``, with no other package of the tests' needs."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def readme_example() -> str:
    """Return the blocks of Python in the README."""
    return "".join(re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.M | re.S))


def main() -> None:
    import smoothloss

    installed = Path(smoothloss.__file__).resolve()
    assert ROOT not in installed.parents, f"{installed} lies in the checkout: nothing was installed"
    assert smoothloss.__version__ == importlib.metadata.version("smoothloss")

    from smoothloss.backends import native

    assert native.instruction_sets()[-1] == "baseline", "the wheel has no compiled module for this machine"
    exec(compile(readme_example(), "README.md", "exec"), {"__name__": "__main__"})
    # What the scripts of the environment do, wherever it puts them.
    for command in (
        ["-m", "smoothloss"],
        ["-c", "import sys; from smoothloss_trainer.cli import main; sys.exit(main(['--help']))"],
    ):
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
