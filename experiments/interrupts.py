"""Ends a script with one line at Ctrl-C and at SIGTERM.

This is imported before everything that takes time. The handler ends the process itself. An
exception would be lost in some parts of an import and of JAX, and can crash a process that
compiles. No file is left incomplete, since all are replaced as a whole or appended to. While a run
trains, `jaxrnn.training.run.Stop` replaces the handler. The last half second, in which Python and
JAX free their memory, cannot be interrupted: the script has printed everything.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from typing import NoReturn

# What to do next, by the name of the script.
ADVICE = {
    "mnist.py": "the same command resumes from the last checkpoint",
    "ablate.py": "the same command trains the runs that are missing",
}
SHOW_CURSOR = b"\x1b[?25h"  # which a progress bar hides


def end(number: int, _: object) -> NoReturn:
    """Prints a line and ends the process with the code of the signal."""
    advice = ADVICE.get(os.path.basename(sys.argv[0]), "")
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, SHOW_CURSOR + b"\n")
        os.write(2, ("; ".join(filter(None, ("interrupted", advice))) + "\n").encode())
    os._exit(128 + number)


def ignore() -> None:
    """Ignores the signals, which Python would otherwise let end the process without a line."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


# Not in the tests, nor in a program of a user's own.
if os.path.dirname(os.path.realpath(sys.argv[0])) == os.path.dirname(os.path.realpath(__file__)):
    for each in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(each) != signal.SIG_IGN:  # as nohup and background jobs ask for
            signal.signal(each, end)
    atexit.register(ignore)  # called last, since this is imported first
