"""Single GEMMs on the bare array: mapping, layout, operands out of PyTorch."""

__all__ = ()
