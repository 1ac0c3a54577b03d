"""`bar` makes a progress bar whose clock does not jump, as the time of day may."""

import time
from typing import Any

from tqdm import tqdm


def bar(**options: Any) -> Any:
    """Make a `tqdm` with these options."""
    # miniters=1 has every step checked: tqdm's own way to skip checks uses the time of day
    found: Any = tqdm(miniters=1, **options)
    if not found.disable:
        found._time = time.monotonic
        found.start_t = found.last_print_t = time.monotonic()
    return found
