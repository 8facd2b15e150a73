"""Weights under FSDP2 (``torch.distributed.fsdp.fully_shard``), seen from the layer.

FSDP registers a shard, a DTensor, as the layer's parameter. Around each pass it assigns the
gathered weight in its place and takes it back: one tensor, whose memory is freed and filled anew
behind its version counter. Neither that counter nor the address tells new weights from old ones;
the assignments do, and what is derived from a gathered weight should not outlive it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["Shard", "as_shard", "refuse_shards", "sharded_like"]

_UNTOUCHED = (0, 0)


def as_shard(tensor: object) -> DTensor | None:
    """``tensor`` if it is a DTensor. Does not import that class, which takes seconds."""
    module = sys.modules.get("torch.distributed.tensor")
    return tensor if module is not None and isinstance(tensor, module.DTensor) else None


def refuse_shards(*operands: Tensor) -> None:
    """Raise :class:`TypeError` for a DTensor, whose memory the kernels would misread."""
    if not torch.compiler.is_compiling() and any(as_shard(operand) is not None
                                                 for operand in operands):
        raise TypeError("a sparse layer got a DTensor: call the module that fully_shard was "
                        "applied to, and leave sparse layers out of tensor parallelism")


def sharded_like(shard: DTensor, whole: Tensor) -> Tensor:
    """This rank's part of ``whole``, which all ranks have, as a DTensor split as ``shard`` is."""
    from torch.distributed.tensor import DTensor, Replicate

    mesh = shard.device_mesh
    everywhere = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=shard.placements)


@dataclass
class Shard:
    """What a layer knows of the shard behind its weight.

    version: grows with each edit of the shard, though not with foreach steps; ``None`` for a weight
        that is not sharded.
    dtype: what FSDP gathers in, which a mixed precision policy may set; ``None`` if unknown.
    """

    version: tuple[int, int] | None = None
    dtype: torch.dtype | None = None

    def exchange(self, old: object, new: object) -> bool:
        """The parameter ``old`` gives way to ``new``; whether both stand for the same weights."""
        before, after = as_shard(old), as_shard(new)
        if before is not None and after is None and isinstance(new, Tensor):
            self._note(before)
            self.dtype = new.dtype
        elif (before is None) == (after is None) and new is not old:
            self.version = None
            return False
        return True

    def gather(self, shard: DTensor) -> Tensor:
        """The whole weight as a pass reads it; every rank of the mesh must ask for it."""
        self._note(shard)
        with torch.no_grad():
            whole = shard.full_tensor().to(self.dtype or shard.dtype).detach()
        return whole.requires_grad_(shard.requires_grad)

    def _note(self, shard: DTensor) -> None:
        with torch.no_grad():
            version = shard._version, shard.to_local()._version
        # A smaller mesh between the passes (``reshard_after_forward=4``) has copies, never edited.
        if self.version is None or version != _UNTOUCHED:
            self.version = version
