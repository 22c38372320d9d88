"""``python -m smoothloss``: versions, devices, and which implementations work here and why the others do not."""

import sys

from smoothloss._diagnostics import report

if __name__ == "__main__":
    sys.stdout.write(report() + "\n")
