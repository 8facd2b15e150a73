"""The grid of a design-space exploration: which sizes, patterns and bandwidths are combined."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from rtl.architecture import PAPER_BYTES_A_USPE, PRESETS, Architecture
from rtl.errors import ParameterError
from rtl.pattern import NmPattern

__all__ = ["Case", "Grid", "Refused", "Sizes"]


class Sizes(BaseModel):
    """What an exploration varies of an architecture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(description="Rows R of the USPE array.")
    cols: int = Field(description="Columns C of the USPE array.")
    adder_stages: int = Field(description="Pipeline stages L of the FP32 adder.")
    w2e_words: int = Field(description="Depth of each row's buffer, words of 16 FP16 elements.")
    n2s_words: int = Field(description="Depth of each column's buffer, packed weights.")
    out_words: int = Field(description="Depth of each column's result buffer, FP32 words.")
    dram_gbps: float = Field(description="Device memory in GB/s, reads and writes together.")

    @property
    def array(self) -> str:
        """Rows and columns."""
        return f"{self.rows} x {self.cols}"


class Refused(Sizes):
    """A combination that is no point of the exploration, and why."""

    pattern: str | None = Field(description="N:M; null where no pattern would help.")
    reason: str = Field(description="The rule that it breaks, or the resource that is short.")


@dataclass(frozen=True)
class Case:
    """One combination: an architecture, bandwidth included, and a pattern."""

    architecture: Architecture
    pattern: NmPattern

    @property
    def bandwidth(self) -> float:
        """Device memory in GB/s."""
        return self.architecture.dram_bytes * self.architecture.clock_mhz / 1000

    @property
    def sizes(self) -> dict[str, float]:
        """The values of :class:`Sizes`."""
        varied = {name: getattr(self.architecture, name) for name in _VARIED}
        return {**varied, "dram_gbps": self.bandwidth}


_VARIED = ("rows", "cols", "adder_stages", "w2e_words", "n2s_words", "out_words")


@dataclass(frozen=True)
class Grid:
    """Every combination of the values given; a list that is not given has the base's value alone.

    Parameters
    ----------
    rows, cols, adder_stages, w2e_words, n2s_words, out_words: of
        :class:`rtl.architecture.Architecture`.
    patterns: of the pruned operands.
    bandwidths: of device memory in GB/s; None is the share of the paper's card that the array has
        by its number of USPEs.
    base: everything else, such as clock and bus.

    Values given twice count once. Raises :class:`ParameterError` for a list that is empty, or a
    pattern that the array cannot run.
    """

    rows: tuple[int, ...]
    cols: tuple[int, ...]
    patterns: tuple[NmPattern, ...] = (NmPattern(2, 8),)
    bandwidths: tuple[float | None, ...] = (None,)
    adder_stages: tuple[int, ...] | None = None
    w2e_words: tuple[int, ...] | None = None
    n2s_words: tuple[int, ...] | None = None
    out_words: tuple[int, ...] | None = None
    base: Architecture = field(default=PRESETS["paper"])

    def __post_init__(self) -> None:
        for one in fields(self):
            if getattr(self, one.name) == ():
                raise ParameterError(one.name, (), "must have at least one value")
        for pattern in self.patterns:
            pattern.require_hardware("patterns")

    def architectures(self) -> Iterator[Architecture]:
        """The legal ones, in the order of the lists, rows outermost and bandwidths innermost."""
        yield from self._made[0]

    def require_legal(self) -> Self:
        """Return ``self``; raises :class:`ParameterError` if no combination is legal."""
        if not self._made[0]:
            raise ParameterError("grid", len(self.illegal), "none of so many combinations is an "
                                 f"architecture; of the first, {self.illegal[0].reason}")
        return self

    @property
    def illegal(self) -> tuple[Refused, ...]:
        """The combinations that are no architecture, in the same order, each with its reason."""
        return self._made[1]

    def cases(self) -> Iterator[Case]:
        """Each legal architecture with each pattern."""
        for architecture in self.architectures():
            for pattern in dict.fromkeys(self.patterns):
                yield Case(architecture, pattern)

    @cached_property
    def _made(self) -> tuple[tuple[Architecture, ...], tuple[Refused, ...]]:
        legal: list[Architecture] = []
        illegal: list[Refused] = []
        lists = [dict.fromkeys(getattr(self, name) or (getattr(self.base, name),))
                 for name in _VARIED]
        for *sizes, bandwidth in itertools.product(*lists, dict.fromkeys(self.bandwidths)):
            varied = dict(zip(_VARIED, sizes, strict=True))
            name = "{rows} x {cols}".format(**varied)
            values = {**self.base.model_dump(), **varied, "name": name, "dram_gbps": bandwidth}
            try:
                legal.append(Architecture.make(**values).require_chip())
            except ParameterError as failure:
                share = PAPER_BYTES_A_USPE * varied["rows"] * varied["cols"]
                shown = share * self.base.clock_mhz / 1000 if bandwidth is None else bandwidth
                illegal.append(Refused(**varied, dram_gbps=shown, pattern=None,
                                       reason=str(failure)))
        return tuple(legal), tuple(illegal)
