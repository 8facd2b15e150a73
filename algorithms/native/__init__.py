"""The N:M selection as a compiled CPU kernel; PyTorch alone does where it was not built."""

__all__ = ()
