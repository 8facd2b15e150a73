"""Fine-tune a Llama-family model on instructions with LLaMA-Adapter V1.

``python -m benchmarks.llm.finetune --base DIR --data alpaca.json -o DIR`` loads a model and its
tokenizer from a folder of Hugging Face, freezes it, trains an adapter in its topmost layers on
samples in Alpaca's format, and saves the adapter. With ``--pattern 2:8`` the frozen base is pruned
first, which is noted beside the adapter. ``--generate "instruction"`` prints an answer; without
``--data`` the adapter that is in the output folder gives it, on a base pruned as in training.

The recipe is that of the authors' script: AdamW, half a cosine after a warm-up of two epochs of
five. A step whose loss or gradient is not finite is skipped and counted.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from algorithms import METHODS, ParameterError, get_method, sparsify
from benchmarks.console import one_line_errors
from models.jsonl import read_object, validated
from models.llm.adapter import (
    AdapterConfig,
    GateStatistics,
    adapter_parameters,
    attentions,
    gate_statistics,
    insert_adapter,
)
from models.llm.checkpoint import load_adapter, save_adapter
from models.llm.decoding import greedy_answer
from models.llm.instructions import (
    Instruction,
    Overlong,
    TokenisedInstruction,
    instruction_batches,
    pad_id,
    read_instructions,
    tokenise_instructions,
)
from models.llm.pretrained import first_line, load_folder, load_model
from rtl.pattern import NmPattern

__all__ = ["LOG", "PRUNING", "EpochLog", "Pruning", "Recipe", "fine_tune", "load_base", "main",
           "rate_factor"]

LOG = "training.jsonl"
"""One line an epoch, beside the adapter."""

PRUNING = "pruning.json"
"""How the base was pruned, beside the adapter."""

_SEEDS = 2**64
_METHOD = "bdwp"
_ROWS = 10
_TRAINING = ("layers", "prompt", "gate", "rate", "epochs", "batch", "max_tokens", "overlong",
             "seed")
"""Options that mean nothing to an adapter that is there."""


class Pruning(BaseModel):
    """What becomes of a base before an adapter is trained, and again before it is used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pattern: str = Field(description="N:M, or dense.")
    method: str | None = Field(description="Of sparsify; null for a dense base.")

    @classmethod
    def make(cls, pattern: str | None, method: str | None) -> Pruning:
        """``None`` is dense, or BDWP; raises :class:`ParameterError` for an unknown one."""
        parsed = NmPattern.parse("dense" if pattern is None else pattern)
        if not parsed.is_dense:
            return cls(pattern=str(parsed), method=get_method(method or _METHOD).name)
        if method is not None:
            raise ParameterError("method", method, "prunes nothing of a dense base; give --pattern")
        return cls(pattern="dense", method=None)

    def apply(self, base: nn.Module) -> None:
        """Prune ``base``, in place; errors as for :func:`algorithms.sparsify`."""
        if self.method is not None:
            # The first linear layer is not the first layer: that is an embedding.
            sparsify(base, self.method, self.pattern, {"*.q_proj": self.pattern})

    def __str__(self) -> str:
        return "dense" if self.method is None else f"pruned {self.pattern} by {self.method}"


@dataclass(frozen=True)
class Recipe:
    """How an adapter learns; the defaults are what the authors' script comes to.

    rate: the highest of the schedule, 9e-3 * batch / 256. warmup: share of all steps in which it
    rises. decay: AdamW's, of prompts and gates alike.
    """

    epochs: int = 5
    batch: int = 32
    rate: float = 1.125e-3
    warmup: float = 0.4
    decay: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ParameterError(name, getattr(self, name), "must be 1 or more", 1)
        if not 0 < self.rate < math.inf:
            raise ParameterError("rate", self.rate, "must be above 0 and finite", Recipe.rate)
        if not 0 <= self.seed < _SEEDS:
            raise ParameterError("seed", self.seed, "must be from 0 to 2**64 - 1",
                                 0 if self.seed < 0 else _SEEDS - 1)


@dataclass(frozen=True)
class EpochLog:
    """One epoch: mean loss of the steps that counted, ``None`` if none did, and the gates after it.

    skipped: steps whose loss or gradient was not finite. rate: of the last step.
    """

    epoch: int
    loss: float | None
    steps: int
    skipped: int
    rate: float
    gates: tuple[GateStatistics, ...]

    def line(self) -> str:
        """For a terminal."""
        parts = [f"epoch {self.epoch}: loss {'none' if self.loss is None else f'{self.loss:.4f}'}"]
        if self.gates:
            opened = statistics.fmean(gate.mean for gate in self.gates)
            largest = max(gate.largest for gate in self.gates)
            parts.append(f"gates {opened:.4f} on average, at most {largest:.4f}")
        if self.skipped:
            parts.append(f"{self.skipped} steps skipped (not finite)")
        return ", ".join(parts)


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Of the highest rate at ``step`` of ``steps``, from 0: a line up, then half a cosine to 0."""
    rising = round(steps * warmup)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def fine_tune(
    model: nn.Module,
    samples: Sequence[TokenisedInstruction],
    recipe: Recipe,
    pad: int = 0,
    progress: Callable[[EpochLog], None] | None = None,
) -> list[EpochLog]:
    """Train the adapter of ``model``, a causal language model of transformers, in place.

    ``pad`` as for :func:`models.llm.instructions.instruction_batches`; ``progress`` is called after
    each epoch. Raises :class:`ParameterError` for a model without an adapter, and for no samples.
    """
    trained = list(adapter_parameters(model).values())
    if not samples:
        raise ParameterError("samples", 0, "must be 1 or more", 1)
    device = trained[0].device
    optimiser = torch.optim.AdamW(trained, recipe.rate, (0.9, 0.95), weight_decay=recipe.decay)
    steps = recipe.epochs * math.ceil(len(samples) / recipe.batch)
    model.train()
    logs: list[EpochLog] = []
    step = 0
    for epoch in range(1, recipe.epochs + 1):
        losses, skipped = [], 0
        order = recipe.seed * recipe.epochs + epoch
        for batch in instruction_batches(samples, recipe.batch, order, pad):
            rate = recipe.rate * rate_factor(step, steps, recipe.warmup)
            optimiser.param_groups[0]["lr"] = rate
            optimiser.zero_grad()
            loss = model(input_ids=batch.ids.to(device), attention_mask=batch.mask.to(device),
                         labels=batch.labels.to(device), use_cache=False).loss
            loss.backward()
            if _finite(loss, trained):
                optimiser.step()
                losses.append(loss.item())
            else:
                skipped += 1
            step += 1
        logs.append(EpochLog(epoch, statistics.fmean(losses) if losses else None, len(losses),
                             skipped, rate, tuple(gate_statistics(model))))
        if progress is not None:
            progress(logs[-1])
    model.eval()
    return logs


def load_base(
    folder: Path, dtype: torch.dtype, device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder, offline.

    Raises :class:`ParameterError` for a device that is not there, and for a folder that has no
    model, not all of its weights, or a family that neither transformers nor adapters know.
    """
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as failure:  # the latter without CUDA
        raise ParameterError("--device", device, f"cannot be used ({first_line(failure)})",
                             "cpu") from None
    if not (folder / "config.json").is_file():
        raise ParameterError("--base", str(folder), "has no config.json; give the folder of a "
                             "model of Hugging Face")
    model: Any = load_model(AutoModelForCausalLM, folder, "--base", dtype=dtype)
    tokenizer = load_folder(AutoTokenizer, folder, "--base")
    attentions(model)
    try:
        model.to(device).eval()
    except RuntimeError as failure:
        raise ParameterError("--device", device,
                             f"cannot hold the base ({first_line(failure)})") from None
    return model, tokenizer


def parser() -> argparse.ArgumentParser:
    """The command line; what has no default here has that of what it is given to."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.llm.finetune", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--base", type=Path, required=True, help="folder of a model")
    made.add_argument("--data", type=Path, help="samples, JSON or JSONL")
    made.add_argument("-o", "--out", type=Path, required=True, help="folder of the adapter")
    made.add_argument("--layers", type=int, help="adapted layers; all but the lowest two")
    made.add_argument("--prompt", type=int, help=f"prompt rows of a layer; {_ROWS}")
    made.add_argument("--gate", choices=["head", "scalar"], help="a gate a head, or one a layer")
    made.add_argument("--rate", type=float, help=f"highest learning rate; {Recipe.rate}")
    made.add_argument("--epochs", type=int, help=f"{Recipe.epochs} by default")
    made.add_argument("--batch", type=int, help=f"sequences of a step; {Recipe.batch}")
    made.add_argument("--max-tokens", type=int, help="longest sequence; 512")
    made.add_argument("--overlong", choices=get_args(Overlong), help="longer ones; error")
    made.add_argument("--seed", type=int, help=f"of prompts and order; {Recipe.seed}")
    made.add_argument("--pattern", help="prune the frozen base, e.g. 2:8; dense by default, or "
                      "what the adapter was trained on")
    made.add_argument("--method", choices=sorted(METHODS), help=f"of pruning; {_METHOD}")
    made.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32",
                      help="of the base; adapters are float32")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--generate", metavar="INSTRUCTION", help="print an answer")
    made.add_argument("--input", default="", help="input of that instruction")
    return made


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Train, save, answer."""
    given = parser().parse_args(arguments)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
    with _named_as_typed(given):
        _check(given)
        model, tokenizer = _trained(given) if given.data is not None else _loaded(given)
        if given.generate is not None:
            sample = Instruction(instruction=given.generate, input=given.input)
            print(greedy_answer(model, tokenizer, sample))
    return 0


def _check(given: argparse.Namespace) -> None:
    """Refuse what would be ignored."""
    if given.data is None and given.generate is None:
        raise ParameterError("--data", None, "is needed to train, or --generate to answer")
    if given.generate == "":
        raise ParameterError("--generate", "", "must say something")
    if given.input and given.generate is None:
        raise ParameterError("--input", given.input, "belongs to an instruction; give --generate")
    if given.data is None:
        for name, value in _typed(given, *_TRAINING).items():
            raise ParameterError(name, value, "is for training, which needs --data")


def _trained(given: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base with an adapter that is trained now, and saved."""
    recipe = Recipe(**_typed(given, "epochs", "batch", "rate", "seed"))
    pruning = Pruning.make(given.pattern, given.method)
    samples = read_instructions(given.data)
    with _written(given.out):  # before hours of training
        given.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=given.out):
            pass
    model, tokenizer = load_base(given.base, getattr(torch, given.dtype), given.device)
    tokens = tokenise_instructions(samples, tokenizer, origin=str(given.data),
                                   **_typed(given, "max_tokens", "overlong"))
    config = AdapterConfig.make(**{
        "layers": max(1, len(attentions(model)) - 2), "prompt": _ROWS,
        **_typed(given, "layers", "prompt", "gate")})
    torch.manual_seed(recipe.seed)
    insert_adapter(model, config)
    pruning.apply(model)
    count = sum(values.numel() for values in adapter_parameters(model).values())
    print(f"{len(tokens)} of {len(samples)} samples, {count:,} parameters train")
    logs = fine_tune(model, tokens, recipe, pad_id(tokenizer), lambda log: print(log.line()))
    with _written(given.out):
        save_adapter(model, given.out)
        (given.out / PRUNING).write_text(pruning.model_dump_json() + "\n")
        (given.out / LOG).write_text("".join(_record(log) + "\n" for log in logs))
    print(f"adapter in {given.out}")
    return model, tokenizer


def _loaded(given: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base, pruned as it was in training, with the adapter of the folder."""
    pruning = _pruning(given)
    model, tokenizer = load_base(given.base, getattr(torch, given.dtype), given.device)
    load_adapter(model, given.out)
    pruning.apply(model)
    return model, tokenizer


def _pruning(given: argparse.Namespace) -> Pruning:
    """What is noted beside the adapter, which the command line must not contradict."""
    path = given.out / PRUNING
    if not path.exists():  # an adapter that was saved elsewhere
        return Pruning.make(given.pattern, given.method)
    found = read_object(path)
    noted = validated(Pruning, found.value, found.where)
    kept = Pruning.make(noted.pattern, noted.method)
    said = kept.pattern if given.pattern is None else Pruning.make(given.pattern, None).pattern
    for name, value in (("pattern", said), ("method", given.method or kept.method)):
        needed = getattr(kept, name)
        if value != needed:
            raise ParameterError(name, value, f"the adapter in {given.out} was trained on a base "
                                 f"that is {kept}", needed)
    return kept


def _typed(given: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those options that are on the command line."""
    return {name: getattr(given, name) for name in names if getattr(given, name) is not None}


@contextmanager
def _named_as_typed(given: argparse.Namespace) -> Iterator[None]:
    """Errors name the option on the command line, not the parameter that it has become."""
    option = {"file": "data" if given.data is not None else "out", "adapter": "out"}
    try:
        yield
    except ParameterError as error:
        name = option.get(error.parameter, error.parameter)
        if name not in vars(given):
            raise
        raise ParameterError(f"--{name.replace('_', '-')}", error.value, error.rule,
                             error.nearest) from None


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as failure:
        reason = getattr(failure, "strerror", None) or first_line(failure)
        raise ParameterError("--out", str(folder), f"cannot be written ({reason})") from None


def _record(log: EpochLog) -> str:
    return json.dumps({**asdict(log), "gates": [gate._asdict() for gate in log.gates]})


def _finite(loss: torch.Tensor, trained: Sequence[nn.Parameter]) -> bool:
    gradients = [values.grad for values in trained if values.grad is not None]
    return bool(loss.isfinite()) and all(bool(grad.isfinite().all()) for grad in gradients)


if __name__ == "__main__":
    sys.exit(main())
