"""What runs on a GPU: N:M selection as Triton kernels, and 2:4 products on sparse tensor cores."""

__all__ = ()
