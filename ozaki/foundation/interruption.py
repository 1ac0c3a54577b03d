"""This module handles Ctrl-C at the command line, before a command begins and after it ended.

The imports take seconds, and a traceback from them helps nobody. While the command ``ozaki`` loads,
Ctrl-C ends it at once with a sentence. That holds from the import of this module on, which is
therefore imported first. Where anything else imports ozaki, this module does nothing.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

STOPPED = 130
PROGRAM = "ozaki"


@contextmanager
def raised() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt in the block; ignore it afterwards."""
    ours = signal.getsignal(signal.SIGINT) is _end
    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_program() -> bool:
    if sys.argv[:1] == ["-m"]:  # `python -m` has this name while it looks for the module
        words = sys.orig_argv
        return PROGRAM in words and words[words.index(PROGRAM) - 1] == "-m"
    return Path(sys.argv[0] if sys.argv else "").stem == PROGRAM


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"ozaki: stopped; nothing was written\n")
    os._exit(STOPPED)


# a process that was told to ignore Ctrl-C, as by nohup, goes on ignoring it
if _is_program() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
