"""From a PyTorch model to the graph of its training step."""

__all__ = ()
