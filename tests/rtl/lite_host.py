"""An AXI4-Lite manager for Amaranth's simulator, with stalls and checks of the protocol."""

from __future__ import annotations

from typing import Any

import numpy as np

from rtl.axi import Response

__all__ = ["LiteHost"]

_PATIENCE = 50
"""Cycles within which a subordinate that works answers."""


class LiteHost:
    """One transaction at a time; address and data of a write come in any order.

    Parameters
    ----------
    ctx: of the test bench.
    bus: the subordinate's port.
    stalls: share of cycles in which the host holds something back.
    """

    def __init__(self, ctx: Any, bus: Any, rng: np.random.Generator, stalls: float = 0.4) -> None:
        self._ctx, self._bus, self._rng, self._stalls = ctx, bus, rng, stalls

    def _may(self) -> bool:
        return bool(self._rng.random() >= self._stalls)

    async def write(self, offset: int, value: int, strobes: int = 0xF) -> Response:
        """Write once; returns the response."""
        ctx, bus = self._ctx, self._bus
        ctx.set(bus.awaddr, offset)
        ctx.set(bus.wdata, value)
        ctx.set(bus.wstrb, strobes)
        waiting = {"aw", "w"}
        for _ in range(_PATIENCE):
            for channel in sorted(waiting):
                valid = getattr(bus, f"{channel}valid")
                # Valid stays up until ready, whatever the dice say.
                ctx.set(valid, ctx.get(valid) or self._may())
            assert not ctx.get(bus.bvalid), "a response before its request"
            taken = {channel for channel in waiting if ctx.get(getattr(bus, f"{channel}valid"))
                     and ctx.get(getattr(bus, f"{channel}ready"))}
            await ctx.tick()
            for channel in taken:
                ctx.set(getattr(bus, f"{channel}valid"), 0)
            waiting -= taken
            if not waiting:
                return Response((await self._response("b", "bresp"))[0])
        raise AssertionError(f"write to {offset:#x} was never taken")

    async def read(self, offset: int) -> tuple[int, Response]:
        """Read once; returns the value and the response."""
        ctx, bus = self._ctx, self._bus
        while not self._may():
            await ctx.tick()
        ctx.set(bus.araddr, offset)
        ctx.set(bus.arvalid, 1)
        for _ in range(_PATIENCE):
            assert not ctx.get(bus.rvalid), "a response before its request"
            taken = ctx.get(bus.arready)
            await ctx.tick()
            if taken:
                ctx.set(bus.arvalid, 0)
                value, response = await self._response("r", "rdata", "rresp")
                return value, Response(response)
        raise AssertionError(f"read of {offset:#x} was never taken")

    async def get(self, offset: int) -> int:
        """Value of a register that is there."""
        value, response = await self.read(offset)
        assert response == Response.OKAY
        return value

    async def put(self, offset: int, value: int) -> None:
        """Write a register that is there."""
        assert await self.write(offset, value) == Response.OKAY

    async def _response(self, channel: str, *payload: str) -> list[int]:
        """Take the response that comes; it must not change while it waits, nor come twice."""
        ctx, bus = self._ctx, self._bus
        valid, ready = getattr(bus, f"{channel}valid"), getattr(bus, f"{channel}ready")
        shown: list[int] | None = None
        for _ in range(_PATIENCE):
            ctx.set(ready, self._may())
            if ctx.get(valid):
                values = [ctx.get(getattr(bus, name)) for name in payload]
                assert shown in (None, values), "a response changed before it was taken"
                shown = values
            else:
                assert shown is None, "a response went before it was taken"
            taken = ctx.get(valid) and ctx.get(ready)
            await ctx.tick()
            if taken:
                ctx.set(ready, 0)
                assert not ctx.get(valid), "a response came twice"
                assert shown is not None
                return shown
        raise AssertionError(f"no response on channel {channel}")
