"""A progress bar by a clock that does not jump, as the time of day may."""

import time
from typing import Any

from tqdm import tqdm


def bar(**options: Any) -> Any:
    """A `tqdm` of these options."""
    # looked at every step: what tqdm else does so that it need not be goes by the time of day
    found: Any = tqdm(miniters=1, **options)
    if not found.disable:
        found._time = time.monotonic
        found.start_t = found.last_print_t = time.monotonic()
    return found
