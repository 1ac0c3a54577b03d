"""These functions handle angles among draws.

A circle has no end: draws about ±π lie at both ends of an interval, and a mean or an R-hat of the
numbers says nothing. The cosine and the sine of an angle are judged in its place.
"""

import numpy as np

MARK = "circular"  # the attribute of their variable, 1: NetCDF has no truth values


def parts(draws: np.ndarray, circular: bool) -> list[np.ndarray]:
    """Return the arrays to judge for a component: itself, or an angle's cosine and sine."""
    return [np.cos(draws), np.sin(draws)] if circular else [draws]


def centred(angles: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the circular mean, and the angles relative to it, in [−π, π).

    Args:
        angles: in radians, of any shape.

    Returns:
        atan2(mean sin, mean cos), and the differences.

    Source: Mardia and Jupp (2000), Directional Statistics.

    Example:
        >>> mean, away = centred(np.array([np.pi - 0.1, 0.3 - np.pi]))
        >>> round(mean + np.pi, 3), away.round(3).tolist()
        (0.1, [-0.2, 0.2])
    """
    mean = float(np.arctan2(np.sin(angles).mean(), np.cos(angles).mean()))
    return mean, np.mod(angles - mean + np.pi, 2 * np.pi) - np.pi


def uncut(angles: np.ndarray) -> np.ndarray:
    """Shift angles to within π of their circular mean, so that they are in one piece."""
    mean, away = centred(np.where(np.isfinite(angles), angles, 0.0))
    return np.where(np.isfinite(angles), mean + away, angles)
