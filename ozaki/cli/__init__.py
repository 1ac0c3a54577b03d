"""This package is the command line: ``ozaki demo | train | sample | denoise | report | compare``.

A command is a file in this folder. `ozaki` offers it because it is imported here.
"""

from ozaki.cli import compare, demo, denoise, report, sample, train
from ozaki.cli.application import app
from ozaki.foundation import interruption

__all__ = ["app", "compare", "demo", "denoise", "main", "report", "sample", "train"]


def main() -> None:
    """Run the command line."""
    with interruption.raised():
        app(prog_name="ozaki")
