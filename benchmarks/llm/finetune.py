"""Fine-tune a Llama-family model on instructions with LLaMA-Adapter V1.

``python -m benchmarks.llm.finetune --base DIR --data alpaca.json -o DIR`` loads a model and its
tokenizer from a folder of Hugging Face, freezes it, trains an adapter in its topmost layers on
samples in Alpaca's format, and saves the adapter. With ``--pattern 2:8`` the frozen base is pruned
first. ``--generate "instruction"`` prints an answer; without ``--data`` the adapter that is in the
output folder gives it.

The recipe is that of the authors' script: AdamW, half a cosine after a warm-up of two epochs of
five. A step whose loss or gradient is not finite is skipped and counted.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from algorithms import METHODS, ParameterError, sparsify
from benchmarks.console import one_line_errors
from models.llm.adapter import (
    AdapterConfig,
    GateStatistics,
    adapter_parameters,
    attentions,
    gate_statistics,
    insert_adapter,
)
from models.llm.checkpoint import load_adapter, save_adapter
from models.llm.instructions import (
    Instruction,
    TokenisedInstruction,
    instruction_batches,
    prompt_ids,
    read_instructions,
    tokenise_instructions,
)

__all__ = ["EpochLog", "Recipe", "answer", "fine_tune", "load_base", "main", "rate_factor"]

LOG = "training.jsonl"
"""One line an epoch, beside the adapter."""


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
        if not self.rate > 0:
            raise ParameterError("rate", self.rate, "must be above 0", Recipe.rate)


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
        opened = statistics.fmean(gate.mean for gate in self.gates)
        largest = max(gate.largest for gate in self.gates)
        skipped = f", {self.skipped} steps skipped (not finite)" if self.skipped else ""
        loss = "none" if self.loss is None else f"{self.loss:.4f}"
        return (f"epoch {self.epoch}: loss {loss}, gates {opened:.4f} on average, "
                f"at most {largest:.4f}{skipped}")


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
    each epoch. Raises :class:`ParameterError` for a model without an adapter.
    """
    trained = list(adapter_parameters(model).values())
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

    Raises :class:`ParameterError` for a folder that has none, or has a family that neither
    transformers nor adapters know.
    """
    if not (folder / "config.json").is_file():
        raise ParameterError("--base", str(folder), "has no config.json; give the folder of a "
                             "model of Hugging Face")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as failure:
        reason = str(failure).strip().splitlines()[0]
        raise ParameterError("--base", str(folder), f"cannot be loaded ({reason})") from None
    attentions(model)
    model.to(device).eval()
    return model, tokenizer


def answer(
    model: Any, tokenizer: PreTrainedTokenizerBase, sample: Instruction, max_new_tokens: int = 128
) -> str:
    """The likeliest answer, greedily, without the end token."""
    ids = torch.tensor([prompt_ids(sample, tokenizer)], device=model.device)
    made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                          max_new_tokens=max_new_tokens, pad_token_id=_pad(tokenizer),
                          eos_token_id=tokenizer.eos_token_id)
    text = tokenizer.decode(made[0, ids.shape[1]:], skip_special_tokens=True)
    return str(text).strip()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.llm.finetune", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--base", type=Path, required=True, help="folder of a model")
    made.add_argument("--data", type=Path, help="samples, JSON or JSONL")
    made.add_argument("-o", "--out", type=Path, required=True, help="folder of the adapter")
    made.add_argument("--layers", type=int, help="adapted layers; all but the lowest two")
    made.add_argument("--prompt", type=int, default=10, help="prompt rows of a layer")
    made.add_argument("--gate", choices=["head", "scalar"], default="head")
    made.add_argument("--rate", type=float, default=Recipe.rate, help="highest learning rate")
    made.add_argument("--epochs", type=int, default=Recipe.epochs)
    made.add_argument("--batch", type=int, default=Recipe.batch, help="sequences of a step")
    made.add_argument("--max-tokens", type=int, default=512, help="longest sequence")
    made.add_argument("--overlong", choices=["error", "truncate", "drop"], default="error")
    made.add_argument("--pattern", help="prune the frozen base, e.g. 2:8; dense by default")
    made.add_argument("--method", choices=sorted(METHODS), default="bdwp")
    made.add_argument("--seed", type=int, default=0)
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
    if given.data is None and given.generate is None:
        raise ParameterError("--data", None, "is needed to train, or --generate to answer")
    if given.generate == "":
        raise ParameterError("--generate", "", "must say something")
    recipe = Recipe(given.epochs, given.batch, given.rate, seed=given.seed)
    samples = [] if given.data is None else read_instructions(given.data)
    model, tokenizer = load_base(given.base, getattr(torch, given.dtype), given.device)
    if samples:
        tokens = tokenise_instructions(samples, tokenizer, given.max_tokens, given.overlong,
                                       str(given.data))
        layers = max(1, len(attentions(model)) - 2) if given.layers is None else given.layers
        config = AdapterConfig.make(layers=layers, prompt=given.prompt, gate=given.gate)
        torch.manual_seed(given.seed)
        insert_adapter(model, config)
        _prune(model, given)
        count = sum(values.numel() for values in adapter_parameters(model).values())
        print(f"{len(tokens)} of {len(samples)} samples, {count:,} parameters train")
        logs = fine_tune(model, tokens, recipe, _pad(tokenizer), lambda log: print(log.line()))
        save_adapter(model, given.out)
        (given.out / LOG).write_text("".join(_record(log) + "\n" for log in logs))
        print(f"adapter in {given.out}")
    else:
        load_adapter(model, given.out)
        _prune(model, given)
    if given.generate is not None:
        sample = Instruction(instruction=given.generate, input=given.input)
        print(answer(model, tokenizer, sample))
    return 0


def _prune(model: nn.Module, given: argparse.Namespace) -> None:
    if given.pattern is not None:
        # The first linear layer is not the first layer: that is an embedding.
        sparsify(model, given.method, given.pattern, {"*.q_proj": given.pattern})


def _record(log: EpochLog) -> str:
    return json.dumps({**asdict(log), "gates": [gate._asdict() for gate in log.gates]})


def _pad(tokenizer: PreTrainedTokenizerBase) -> int:
    found = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if found is None else found)


def _finite(loss: torch.Tensor, trained: Sequence[nn.Parameter]) -> bool:
    gradients = [values.grad for values in trained if values.grad is not None]
    return bool(loss.isfinite()) and all(bool(grad.isfinite().all()) for grad in gradients)


if __name__ == "__main__":
    sys.exit(main())
