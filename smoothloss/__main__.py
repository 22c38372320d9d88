"""``python -m smoothloss``: versions, devices, and which implementations work here and why the others do not."""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # torch takes seconds to import, in which nothing needs to be undone

    from smoothloss._diagnostics import report

    sys.stdout.write(report() + "\n")
