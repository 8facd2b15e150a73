"""When the vector engine does what: which instructions it refuses, how they wait for each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rtl.architecture import Architecture
from rtl.chunk import LANES
from rtl.error_codes import ErrorCode
from rtl.isa import LINES, PRUNE, VECTOR, Decoded, Source, VectorOp
from rtl.pattern import NmPattern
from rtl.sore import SoreTiming
from rtl.vector_lane import LaneTiming

__all__ = ["REDUCTIONS", "VectorTiming"]

REDUCTIONS = (VectorOp.SUM, VectorOp.PEAK)
"""Operations whose destination line is the line number modulo ``period``."""


@dataclass(frozen=True)
class VectorTiming:
    """Cycle counts of the vector engine, as formulas over instructions and the architecture.

    A line takes ``beats`` cycles to issue, one if it comes from a register, and can be read by the
    next one ``depth`` cycles after its issue. Two rules keep every program exact:

    * an instruction **follows** the one before (:meth:`follows`) no sooner than ``depth`` cycles
      after that one's first line, or else ``depth`` cycles after its last line;
    * a reduction begins a round of ``period`` lines no sooner than ``depth`` cycles after the
      last round began.

    """

    architecture: Architecture

    operand: int = 2
    """From the issue of a line to its operands at the lanes: registers or result buffers."""

    write: int = 1
    """From a result to where it can be read."""

    narrow: int = 1
    """From an operand to its FP16 word at SORE."""

    def depth(self, op: int) -> int:
        """Cycles from the issue of a line to the first issue that can read its result."""
        return self.operand + LaneTiming().latency(VectorOp(op)) + self.write

    def beats(self, instruction: Decoded) -> int:
        """Cycles to issue a line: ``16 / C`` from the result buffers, but at least one."""
        return self.architecture.line_steps if instruction["drain"] else 1

    @staticmethod
    def refused(instruction: Decoded) -> ErrorCode:
        """Why an instruction is not carried out, or NONE.

        Beyond the last line is RANGE. FIELD is a pattern that the array has not, a reduction
        without a period, and a repeating b that would read lines written before. Accesses to the
        result buffers are checked one by one instead.
        """
        if instruction.instruction is PRUNE:
            if 2 * instruction["n"] > 1 << instruction["m_log2"]:
                return ErrorCode.FIELD
            lines = LANES * instruction["chunks"]
            return ErrorCode.RANGE if instruction["line"] + lines > LINES else ErrorCode.NONE
        if instruction.instruction is not VECTOR:
            return ErrorCode.NONE
        if instruction["line"] + instruction["lines"] > LINES:
            return ErrorCode.RANGE
        if _reduces(instruction):
            return ErrorCode.NONE if instruction["period"] else ErrorCode.FIELD
        rereads = (
            instruction["source"] == Source.VECTOR
            and instruction["b"] == instruction["dest"]
            and instruction["line"] < instruction["period"]
        )
        return ErrorCode.FIELD if rereads else ErrorCode.NONE

    def follows(self, before: Decoded, instruction: Decoded) -> bool:
        """Whether the lines of both come in such an order that they may overlap.

        ``before`` writes line by line, a line a cycle; ``instruction`` never reads a line, repeated
        or not, before it comes to that number itself; and its results are no sooner there.
        """
        return (
            before["line"] == instruction["line"]
            and not _reduces(before) and self.beats(before) == 1
            and self.depth(before["op"]) <= self.depth(instruction["op"])
        )

    def issue(self, instruction: Decoded) -> int:
        """Cycles from the first to the last issue of a VECTOR, both included."""
        lines, beats = instruction["lines"], self.beats(instruction)
        if not _reduces(instruction):
            return lines * beats
        period = instruction["period"]
        rounds = -(-lines // period)
        last = lines - (rounds - 1) * period
        return (rounds - 1) * max(period * beats, self.depth(instruction["op"])) + last * beats

    def prune(self, instruction: Decoded) -> int:
        """Cycles from the first issue of a PRUNE to the one in which all its chunks are stored."""
        pattern = NmPattern(instruction["n"], 1 << instruction["m_log2"])
        first_row = self.operand + self.narrow
        return first_row + SoreTiming().cycles(instruction["chunks"], pattern)

    def cycles(self, instruction: Decoded) -> int:
        """From ``valid & ready`` to ``done`` while nothing else is under way."""
        return self.schedule([instruction])[0]

    def schedule(self, instructions: Sequence[Decoded]) -> list[int]:
        """Cycle of each ``done`` if they are always waiting, the first taken in cycle 0."""
        done = []
        taken = settled = quiet = 0
        before: Decoded | None = None
        for instruction in instructions:
            ready = taken + 1
            if instruction.instruction is VECTOR and not self.refused(instruction):
                overlap = before is not None and self.follows(before, instruction)
                start = max(ready, settled if overlap else quiet)
                depth = self.depth(instruction["op"])
                taken = start + self.issue(instruction) - 1
                settled, quiet = start + depth, taken + depth
                done.append(quiet)
                before = instruction
                continue
            taken = max(ready, quiet)
            if instruction.instruction is PRUNE and not self.refused(instruction):
                taken += self.prune(instruction)
            done.append(taken + 1)
        return done


def _reduces(instruction: Decoded) -> bool:
    return instruction["op"] in REDUCTIONS
