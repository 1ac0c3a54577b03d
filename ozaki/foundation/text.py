"""Numbers and lists in sentences."""


def plural(number: int, noun: str) -> str:
    """As in "1 chain", "4 chains"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def some(names: list[str], limit: int = 5) -> str:
    """The first names, and how many more."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
