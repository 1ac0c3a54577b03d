"""Run the Python blocks of a tutorial in order, in one namespace; say what each printed and drew.

    python runner.py BLOCKS.json FOUND.json

Run by hooks.py in an empty folder, in a process of its own.
"""

import contextlib
import io
import json
import sys
import traceback
from pathlib import Path

PICTURES = (".svg", ".png")


def drawn() -> dict[str, float]:
    """Pictures in the folder, and when they were written."""
    return {p.name: p.stat().st_mtime_ns for p in Path().iterdir() if p.suffix in PICTURES}


def main() -> None:
    """Run them all, or to the first that fails."""
    source, target = sys.argv[1:]
    namespace = {"__name__": "__main__"}
    found = []
    for number, block in enumerate(json.loads(Path(source).read_text()), 1):
        before, said = drawn(), io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                exec(compile(block, f"block {number}", "exec"), namespace)
        except Exception:
            traceback.print_exc()
            sys.exit(1)
        pictures = [name for name, at in drawn().items() if before.get(name) != at]
        found.append({"said": said.getvalue(), "pictures": sorted(pictures)})
    Path(target).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
