"""Many architectures: their speed, resources and energy."""

__all__ = ()
