"""The command line: ``ozaki demo | train | sample | denoise | report | compare`` (floor 10).

A command is a file in `ozaki.commands`; to import it here is to offer it.
"""

from ozaki import interruption
from ozaki.commands import compare, demo, denoise, report, sample, train
from ozaki.commands.app import app

__all__ = ["app", "compare", "demo", "denoise", "main", "report", "sample", "train"]


def main() -> None:
    """Run the command line."""
    with interruption.raised():
        app(prog_name="ozaki")
