"""``python -m smoothloss``: versions, devices, and which implementations work here and why the others do not."""

import sys

from smoothloss_trainer.cli.signals import Signals

if __name__ == "__main__":
    with Signals(alone=True):
        from smoothloss._diagnostics import report

        sys.stdout.write(report() + "\n")
        sys.stdout.flush()
