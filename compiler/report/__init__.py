"""A schedule as JSON, page, trace and tables."""

__all__ = ()
