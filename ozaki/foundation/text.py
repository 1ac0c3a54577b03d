"""These functions write numbers and lists in sentences."""


def plural(number: int, noun: str) -> str:
    """Write a number with its noun, as in "1 chain", "4 chains"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def some(names: list[str], limit: int = 5) -> str:
    """Write the first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
