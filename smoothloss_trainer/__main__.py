"""``python -m smoothloss_trainer``: the command ``smoothloss``."""

import sys

from smoothloss_trainer.cli import main

if __name__ == "__main__":
    sys.exit(main())
