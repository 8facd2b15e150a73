"""The one object that sizes everything: RTL, golden model, cycle model, compiler and documentation.

An :class:`Architecture` is frozen and validated; presets are named (``tiny``, ``small``,
``paper``) and files are TOML with the same keys.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rtl.errors import ParameterError, closest

__all__ = ["MAX_M", "MAX_N", "NOT_IN_RTL", "PAPER_BYTES_A_USPE", "PRESETS", "Architecture"]

MAX_M = 16
"""Widest group the activation bus carries."""
MAX_N = MAX_M // 2
"""Most weights of a group that a processing element holds in weight-stationary mode."""


PAPER_BYTES_A_USPE = 384 / 1024
"""Bytes of device memory a cycle and USPE: 76.8 GB/s at 200 MHz for 32 x 32."""


NOT_IN_RTL = ("name", "clock_mhz", "dram_gbps", "dram_gib")
"""Parameters that change neither netlist nor program."""


class Architecture(BaseModel):
    """Every size of one SAT instance.

    Raises :class:`ParameterError` (through :meth:`load` and :meth:`make`) for a key or value
    that breaks a rule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field("custom", description="Name shown in reports.")
    rows: int = Field(8, ge=1, le=256, description="Rows R of the USPE array.")
    cols: int = Field(8, ge=1, le=256, description="Columns C of the USPE array.")
    block: int = Field(
        8, ge=1, le=16,
        description="Largest side of a sub-array: one Verilog module, one floorplan unit.",
    )
    adder_stages: int = Field(
        4, ge=2, le=5,
        description="Pipeline stages L of the FP32 adder, and so the interleave factor.",
    )
    w2e_words: int = Field(
        2048, ge=16, le=65536,
        description="Depth of each row's west-to-east buffer, words of 16 FP16 elements.",
    )
    n2s_words: int = Field(
        32768, ge=64, le=1048576,
        description="Depth of each column's north-to-south buffer, packed weights.",
    )
    out_words: int = Field(
        32768, ge=64, le=1048576,
        description="Depth of each column's result buffer, FP32 words.",
    )
    bus_bytes: int = Field(
        64, ge=32, le=128, description="Width of the AXI4 memory port in bytes: 32, 64 or 128.",
    )
    burst_beats: int = Field(
        16, ge=1, le=64, description="Longest AXI4 burst in beats; bursts end at 4 KB anyway.",
    )
    read_beats: int = Field(
        256, ge=16, le=4096,
        description="Depth of the read FIFO in beats: so many may be outstanding.",
    )
    clock_mhz: float = Field(200.0, gt=0, le=1000, description="Clock for times, not for cycles.")
    dram_gbps: float | None = Field(
        None, gt=0, le=4000,
        description="Device memory in GB/s, reads and writes together, for schedules and the model "
        "of the memory; by default the share of the paper's card a USPE, 76.8 GB/s for 32 x 32.",
    )

    dram_gib: float = Field(64.0, gt=0, description="Size of device memory, for schedules.")

    @model_validator(mode="after")
    def _check_block(self) -> Self:
        for parameter in ("rows", "cols"):
            side = getattr(self, parameter)
            if side > self.block and side % self.block:
                nearest = max(1, round(side / self.block)) * self.block
                rule = f"must be at most block={self.block} or a multiple of it"
                raise ParameterError(parameter, side, rule, nearest)
        return self

    @model_validator(mode="after")
    def _check_bus(self) -> Self:
        if self.bus_bytes & (self.bus_bytes - 1):
            nearest = min((32, 64, 128), key=lambda legal: abs(legal - self.bus_bytes))
            raise ParameterError("bus_bytes", self.bus_bytes, "must be 32, 64 or 128", nearest)
        return self

    @model_validator(mode="after")
    def _check_buffers(self) -> Self:
        least = {
            "n2s_words": (self.rows * MAX_N, "a slice of R groups of weights"),
            "out_words": (self.rows * self.interleave, "a tile of R * L results"),
        }
        for parameter, (words, what) in least.items():
            if getattr(self, parameter) < words:
                rule = f"must hold {what}, so at least {words} words with rows={self.rows}"
                raise ParameterError(parameter, getattr(self, parameter), rule, words)
        return self

    @property
    def interleave(self) -> int:
        """Independent accumulations that share one USPE: exactly the adder's latency."""
        return self.adder_stages

    def require_chip(self) -> Architecture:
        """Return ``self`` if it can be a chip: C divides 16 or is a multiple of it.

        Raises :class:`ParameterError` otherwise: panels of 16 columns must fall on whole column
        tiles.
        """
        if MAX_M % self.cols and self.cols % MAX_M:
            legal = (cols for cols in range(1, 257) if not (MAX_M % cols and cols % MAX_M))
            nearest = min(legal, key=lambda cols: abs(cols - self.cols))
            raise ParameterError("cols", self.cols,
                                 f"must divide {MAX_M} or be a multiple of it", nearest)
        return self

    @property
    def line_steps(self) -> int:
        """Cycles that a line of 16 columns takes through the ports of the columns."""
        return max(1, MAX_M // self.cols)

    @property
    def dram_bytes(self) -> float:
        """Bytes of device memory a cycle."""
        if self.dram_gbps is None:
            return PAPER_BYTES_A_USPE * self.pes
        return self.dram_gbps * 1000 / self.clock_mhz

    @property
    def pes(self) -> int:
        """Number of USPEs, R * C."""
        return self.rows * self.cols

    @property
    def block_rows(self) -> int:
        """Rows of a sub-array."""
        return min(self.rows, self.block)

    @property
    def block_cols(self) -> int:
        """Columns of a sub-array."""
        return min(self.cols, self.block)

    @classmethod
    def make(cls, **values: object) -> Architecture:
        """Build from keywords, with every failure as a :class:`ParameterError`."""
        unknown = sorted(set(values) - set(cls.model_fields))
        if unknown:
            rule = "is not an architecture parameter"
            raise ParameterError(unknown[0], values[unknown[0]], rule,
                                 closest(unknown[0], cls.model_fields))
        try:
            return cls.model_validate(values)
        except ValidationError as failure:
            first = failure.errors()[0]
            inner = first.get("ctx", {}).get("error")
            if isinstance(inner, ParameterError):
                raise inner from None
            parameter = str(first["loc"][0])
            rule, context = first["msg"].lower(), first.get("ctx", {})
            bound = next((context[key] for key in ("ge", "le") if key in context),
                         cls.model_fields[parameter].default)
            raise ParameterError(parameter, first["input"], rule, bound) from None

    @classmethod
    def load(cls, source: str, parameter: str = "--arch") -> Architecture:
        """A preset by name, or a TOML file by path (recognised by its ``.toml`` suffix)."""
        if source in PRESETS:
            return PRESETS[source]
        if not source.endswith(".toml"):
            rule = f"must be one of {', '.join(PRESETS)} or the path of a .toml file"
            raise ParameterError(parameter, source, rule, closest(source, PRESETS) or "small")
        path = Path(source)
        if not path.is_file():
            raise ParameterError(parameter, source, "no such file", "small")
        try:
            values = tomllib.loads(path.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failure:
            raise ParameterError(parameter, source, f"not valid TOML ({failure})") from None
        return cls.make(**{"name": path.stem, **values})


PRESETS: dict[str, Architecture] = {
    preset.name: preset
    for preset in (
        Architecture(name="tiny", rows=4, cols=4),
        Architecture(name="small", rows=8, cols=8),
        # Half the depth of the default: with it the block RAM of the VU9P would be full.
        Architecture(name="paper", rows=32, cols=32, n2s_words=16384, out_words=16384,
                     dram_gbps=76.8),
    )
}
"""Named architectures: ``tiny`` for tests, ``small`` for a laptop, ``paper`` as the SAT paper."""
