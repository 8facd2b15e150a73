"""Floating-point leaves of the datapath, each a spec object: golden computation and hardware.

To change how numbers are added, multiplied, divided, compared or converted, this folder is the
only place.
"""

from rtl.fp.adder import Adder
from rtl.fp.convert import Narrow, Widen
from rtl.fp.divider import DivideRoot
from rtl.fp.multiplier import Multiplier
from rtl.fp.multiplier32 import Multiplier32
from rtl.fp.select import Compare, Compared

__all__ = [
    "Adder", "Compare", "Compared", "DivideRoot", "Multiplier", "Multiplier32", "Narrow", "Widen",
]
