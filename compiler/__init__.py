"""Any PyTorch model in, the best schedule of its training step out; programs for the chip."""

__all__ = ()
