"""The command line: ``smoothloss train | evaluate | translate | caption | ... COMMAND --help``.

What is needed before a command starts is light: torch is read by the modules in :mod:`smoothloss_trainer.commands`,
once signals are handled and the arguments are known to be right.
"""

from __future__ import annotations

import sys

from smoothloss_trainer.cli.signals import Signals
from smoothloss_trainer.cli.streams import prepare_streams

TYPE_CHECKING = False  # not of typing: until signals are handled, every import counts
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; what goes wrong is one line on stderr.

    Args:
        arguments: The words after ``smoothloss``; None: those of this process, which then is the command's own.

    Returns:
        The exit status: 0; 2 for what the user gave; 1 for what failed although it was right (a full disk, a missing
        package, a bug); 128 + the signal's number when a signal ended it (130: Ctrl-C, 143: SIGTERM), and 141 when
        nobody reads its output any more.
    """
    if arguments is None:
        prepare_streams()
    with Signals(alone=arguments is None) as signals:
        from smoothloss_trainer.cli.run import run_command

        return run_command(sys.argv[1:] if arguments is None else list(arguments), signals)
