"""Programs of the chip: tensors, code of every operation, races, host points."""

__all__ = ()
