"""Floating-point leaves of the datapath, each a spec object: golden computation and hardware.

To change how numbers are added, multiplied or converted, this folder is the only place.
"""

from rtl.fp.adder import Adder
from rtl.fp.convert import Narrow, Widen
from rtl.fp.multiplier import Multiplier

__all__ = ["Adder", "Multiplier", "Narrow", "Widen"]
