"""What sparse training does to a model: masks that move, gradients that differ, steps skipped."""

__all__ = ()
