"""Run a PyTorch model with every matrix product on the array, whatever the model is made of.

Inside :class:`Offload` each product of two matrices that PyTorch would compute, forward or
backward, of layers or of activations, goes through the array's arithmetic instead, and PyTorch goes
on with its result: operands are rounded to FP16, sums are the numerics contract's. What lies
between (normalisation, softmax, embeddings, the loss) PyTorch computes in its own precision, as the
host would.

What a layer of :func:`algorithms.sparsify` has pruned, a weight or a sample of dY, is recognised by
its values and runs with the layer's pattern as the second operand; all other products are dense.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

from algorithms import NmLayer, sparse_layers
from compiler.array.capture import Stage
from rtl.pattern import DENSE, NmPattern
from sim import golden

__all__ = ["Offload", "Product", "Run", "golden_product"]

Half = npt.NDArray[np.float16]
Single = npt.NDArray[np.float32]

_aten = torch.ops.aten


@dataclass(frozen=True)
class Product:
    """One product that ran: C (batch, P, Q) = A (batch, P, K) @ B (batch, K, Q), float16 in.

    ``pattern`` of B along K. ``torch_c``: PyTorch's own float32 result for the same operands.
    """

    name: str
    stage: Stage
    a: Half
    b: Half
    pattern: NmPattern
    c: Single
    torch_c: Single


Run = Callable[[Half, Half, NmPattern], Single]
"""Computes a product's C from A, B and the pattern, shapes as in :class:`Product`."""


def golden_product(a: Half, b: Half, pattern: NmPattern) -> Single:
    """What the array must return, bit for bit."""
    return np.stack([golden.gemm(one, other, pattern) for one, other in zip(a, b, strict=True)])


class _Known(NamedTuple):
    """An operand: whose, in which pass it is read, and the pattern along the reduction.

    ``of_gradient``: the pattern is that of dY, which the operand is multiplied by.
    """

    layer: str
    stage: Stage
    pattern: NmPattern
    of_gradient: bool = False


class Offload(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which the products of ``model`` run on the array.

    Parameters
    ----------
    model: its layers give products their names and patterns; they must not change inside.
    run: computes a product, by default the golden model.
    note: called with each product once it has run.

    ``elsewhere`` counts calls of floating-point operators that are no plain products, such as
    convolutions; PyTorch computes them. Attention is taken apart into its products. Enter it on the
    thread that runs the backward pass too, in which CPU tensors stay.
    """

    def __init__(
        self, model: nn.Module, run: Run = golden_product,
        note: Callable[[Product], None] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elsewhere: Counter[str] = Counter()
        self._run, self._note = run, note
        self._tracker = ModuleTracker()
        self._stack = ExitStack()
        self._root = type(model).__name__
        self._model, self._weights = model, dict(_weights(model))
        self._gradients: dict[bytes, str] = {}
        self._calls: Counter[tuple[str, Stage]] = Counter()

    def __enter__(self) -> Self:
        for name, layer in sparse_layers(self._model):
            if layer.nm_plan.method.update == "grad":
                self._stack.callback(layer.watch_update, None)
                layer.watch_update(partial(self._sampled, name, layer.nm_plan.update.pattern))
        for name, module in self._model.named_modules():
            if isinstance(module, nn.Linear):
                hook = module.register_forward_hook(partial(self._watch, name))
                self._stack.callback(hook.remove)
        self._stack.enter_context(self._tracker)
        self._stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)  # type: ignore[no-untyped-call]
        self._stack.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """PyTorch calls this instead of each of its operators."""
        options = kwargs or {}
        packet = func.overloadpacket
        if packet in (_aten.mm, _aten.bmm) and not options:
            return self._product(*args)
        if packet is _aten.addmm and not options:
            added, left, right = args
            return added + self._product(left, right)
        if packet in flop_registry:
            self.elsewhere[f"{self._module()} {packet}"] += 1
        return func(*args, **options)

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        operands = [_half(one) for one in (left, right)]
        # Autograd may hand over a product's transpose; the weight is the array's second operand.
        known, swapped = self._weight(operands[1]), False
        if known is None and left.dim() == 2:
            known = self._weight(operands[0].swapaxes(1, 2))
            swapped = known is not None
        swapped ^= known is not None and known.of_gradient
        if swapped:
            operands = [one.swapaxes(1, 2) for one in reversed(operands)]
        a, b = (np.ascontiguousarray(one) for one in operands)
        name, stage, pattern, _ = known or self._unknown(a, left.dim() == 2)
        result = self._run(a, b, pattern)
        if self._note is not None:
            self._note(Product(self._numbered(name, stage), stage, a, b, pattern, result,
                               _torch(a, b)))
        c = torch.from_numpy(result)
        c = c.mT if swapped else c
        return (c[0] if left.dim() == 2 else c).to(left.dtype).contiguous()

    def _watch(self, name: str, _: nn.Module, args: Any, output: Tensor) -> None:
        """Learn whose a dY is before its products come: queries, keys and values share the rest."""
        def note(gradient: Tensor) -> None:
            rows = gradient.reshape(-1, gradient.shape[-1])
            self._gradients[_digest(_half(rows.mT))] = name

        if output.requires_grad:
            output.register_hook(note)  # type: ignore[no-untyped-call]

    def _sampled(self, name: str, pattern: NmPattern, sample: Tensor) -> None:
        """dY (rows, C_out) as WU is about to read it."""
        self._weights[_digest(_half(sample))] = _Known(name, "WU", pattern)

    def _weight(self, operand: Half) -> _Known | None:
        return self._weights.get(_digest(operand)) if len(operand) == 1 else None

    def _unknown(self, a: Half, matrix: bool) -> _Known:
        """A product without a weight: WU, whose A is some layer's dY^T, or of activations."""
        if not self._tracker.is_bw:
            return _Known(self._module(), "FF", DENSE)
        if matrix:
            return _Known(self._gradients.get(_digest(a), self._module()), "WU", DENSE)
        return _Known(self._module(), "BP", DENSE)

    def _module(self) -> str:
        """The innermost module at work, as the model names it."""
        path: str = max(self._tracker.parents - {"Global"}, key=len, default=self._root)
        return path.removeprefix(f"{self._root}.")

    def _numbered(self, name: str, stage: Stage) -> str:
        """``name``, from the second product of a module and stage on with a number."""
        self._calls[name, stage] += 1
        count = self._calls[name, stage]
        return name if count == 1 else f"{name}[#{count}]"


def _half(operand: Tensor) -> Half:
    """(batch, rows, columns), rounded as the array reads it."""
    half: Half = operand.detach().to(torch.float16).numpy()
    return half.reshape(math.prod(half.shape[:-2]), *half.shape[-2:])


def _digest(operand: Half) -> bytes:
    """Equal for equal values of equal shape, and in practice for no others."""
    return sha256(repr(operand.shape).encode() + operand.tobytes()).digest()


def _torch(a: Half, b: Half) -> Single:
    left, right = (torch.from_numpy(one).float() for one in (a, b))
    result: Single = torch.bmm(left, right).numpy()
    return result


def _weights(model: nn.Module) -> list[tuple[bytes, _Known]]:
    """Every weight as FF and BP multiply by it, (1, K, Q)."""
    known: list[tuple[bytes, _Known]] = []
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        forward = backward = layer.weight
        first, second = _Known(name, "FF", DENSE), _Known(name, "BP", DENSE)
        if isinstance(layer, NmLayer):
            forward, backward = layer.forward_weight(), layer.backward_weight()
            patterns = layer.nm_plan.executed_patterns()
            first = _Known(name, "FF", patterns["FF"])
            second = _Known(name, "BP", patterns["BP"], layer.nm_plan.method.backward == "grad")
        known += [(_digest(_half(forward.mT)), first), (_digest(_half(backward)), second)]
    return known
