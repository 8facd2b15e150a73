"""Sparse training under the ``Trainer`` of Hugging Face transformers; needs the extra ``hf``."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from algorithms.diagnostics.monitor import Monitor, pruned_shares
from algorithms.handle import SparseHandle, loss_scale_of
from rtl.errors import ParameterError

__all__ = ["SparsityCallback"]


class SparsityCallback(TrainerCallback):
    """``Trainer(model, ..., callbacks=[SparsityCallback(handle)])``, and nothing else.

    In each optimiser step it adds the method's decay of pruned weights, once whatever the gradient
    accumulation, after clipping. The schedule follows ``state.global_step``, as the learning rate
    does, so that it resumes with the run; steps that a loss scaler skips count there. Each log
    entry gains ``sparsity_ff``, ``sparsity_bp`` and ``sparsity_wu``, see
    :func:`~algorithms.diagnostics.monitor.pruned_shares`.

    Call :func:`algorithms.sparsify` before the ``Trainer`` is made, not :meth:`SparseHandle.attach
    <algorithms.handle.SparseHandle.attach>`: decay would be added twice. ``precision="native"``
    follows the arguments ``bf16`` and ``fp16``. Checkpoints have the keys and the dense masters of
    the plain model, so ``from_pretrained`` reads them; sparsify anew what it returns.

    Parameters
    ----------
    handle: of the model that is trained, or of one that it wraps.
    monitor: called after each step; it writes to its own writer.

    Raises :class:`ParameterError` as training begins, for an optimiser that is not of
    ``torch.optim``, such as DeepSpeed's, whose gradients are elsewhere.
    """

    def __init__(self, handle: SparseHandle, monitor: Monitor | None = None) -> None:
        self.handle, self.monitor = handle, monitor
        self._hook: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Resume the schedule, and wait for the optimiser's steps.

        A hook of the optimiser rather than ``on_pre_optimizer_step``, where gradients may still be
        multiplied by the loss scale.
        """
        optimiser = kwargs.get("optimizer")
        optimiser = getattr(optimiser, "optimizer", optimiser)  # accelerate wraps it
        if not isinstance(optimiser, torch.optim.Optimizer):
            raise ParameterError("optimizer", type(optimiser).__name__,
                                 "must be a torch.optim.Optimizer for decay to reach gradients")
        self._release()  # the last training may have ended in an exception
        hooks: Any = optimiser  # ``register_step_pre_hook`` is untyped in parts of torch
        self._hook = hooks.register_step_pre_hook(self._decay)
        self.handle.restore(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Advance the schedule."""
        self.handle.restore(state.global_step)
        if self.monitor is not None:
            self.monitor.step(state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:
        """Add the phase to what is logged, on screen and in ``state.log_history``."""
        phase = {f"sparsity_{stage.lower()}": round(share, 4)
                 for stage, share in pruned_shares(self.handle).items()}
        if logs is not None:
            logs |= phase
        if state.log_history:  # it holds a copy of ``logs``
            state.log_history[-1] |= phase

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let go of the optimiser."""
        self._release()

    def _decay(self, optimiser: torch.optim.Optimizer, *_: object) -> None:
        self.handle.before_step(loss_scale_of(optimiser))

    def _release(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
