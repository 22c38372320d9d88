"""``python -m smoothloss.trainer.cli``: the command ``smoothloss``."""

import sys

from smoothloss.trainer.cli import main

if __name__ == "__main__":
    sys.exit(main())
