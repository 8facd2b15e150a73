"""Sparse-training methods, one a file; every method by its name is in ``catalogue``."""

__all__ = ()
