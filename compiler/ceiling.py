"""Division that rounds up: how many tiles, blocks or words cover something."""

from __future__ import annotations

__all__ = ["ceil_div"]


def ceil_div(value: int, unit: int) -> int:
    """``value / unit``, rounded up."""
    return -(-value // unit)
