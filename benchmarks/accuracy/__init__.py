"""The accuracy study: every sparse-training method against dense, on the same data and seeds."""

__all__ = ()
