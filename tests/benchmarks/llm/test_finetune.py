"""Fine-tuning by command: a tiny model of Hugging Face in a folder, from samples to an answer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from algorithms import ParameterError
from benchmarks.llm import finetune
from benchmarks.llm.finetune import Recipe, fine_tune, main, rate_factor
from models.llm.adapter import AdapterConfig, adapter_root, insert_adapter
from models.llm.checkpoint import CONFIG, TENSORS, load_adapter
from models.llm.instructions import Instruction, TokenisedInstruction, tokenise_instructions

MODELS: Any = AutoModelForCausalLM  # untyped
SAMPLES = [{"instruction": f"Say {word}.", "input": "", "output": "crane"}
           for word in ("heron", "crane", "stork", "ibis")]
"""One answer to all, which a random base can be brought to."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``save_pretrained`` makes it: three random layers, a word tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    split = pre_tokenizers.Whitespace()
    text = " ".join(Instruction.model_validate(sample).prompt() for sample in SAMPLES)
    words = dict.fromkeys(word for word, _ in split.pre_tokenize_str(text))
    vocabulary = {word: at for at, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    kind: Any = PreTrainedTokenizerFast  # untyped
    kind(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    model = MODELS.from_config(AutoConfig.for_model(
        "llama", vocab_size=len(vocabulary), hidden_size=64, intermediate_size=96,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, tie_word_embeddings=False))
    for name, values in model.named_parameters():
        if values.dim() == 2:  # so that layers and tokens tell apart what untrained ones would not
            torch.nn.init.normal_(values, std=1.0 if "embed" in name else 0.125)
    model.save_pretrained(folder)
    return folder


def run(base: Path, out: Path, *more: str) -> int:
    """The command on the samples above, beside the adapter."""
    out.mkdir(exist_ok=True)
    data = out / "samples.json"
    data.write_text(json.dumps(SAMPLES))
    arguments = ["--base", str(base), "--data", str(data), "-o", str(out), "--device", "cpu"]
    return main([*arguments, *more])


def loaded(base: Path) -> Any:
    return finetune.load_base(base, torch.float32, "cpu")


@pytest.mark.parametrize("pattern", [[], ["--pattern", "2:8", "--method", "bdwp"]])
def test_from_samples_to_an_answer(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pattern: list[str]
) -> None:
    assert run(base, tmp_path, "--layers", "3", "--prompt", "8", "--rate", "0.05", "--epochs", "60",
               "--batch", "4", "--generate", "Say crane.", *pattern) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"4 of 4 samples, {3 * (8 * 64 + 4):,} parameters train"
    assert lines[-2:] == [f"adapter in {tmp_path}", "crane"]
    logs = [json.loads(line) for line in (tmp_path / finetune.LOG).read_text().splitlines()]
    assert [log["epoch"] for log in logs] == list(range(1, 61)) and len(lines) == 63
    assert logs[-1]["loss"] < 0.5 * logs[0]["loss"]
    assert [gate["layer"] for gate in logs[-1]["gates"]] == [0, 1, 2]
    assert all(gate["largest"] >= gate["mean"] > 0.01 for gate in logs[-1]["gates"])
    # Without the adapter, and then with the saved one, which must be what was trained.
    model, tokenizer = loaded(base)
    asked = Instruction(instruction="Say crane.")
    assert finetune.answer(model, tokenizer, asked, 4) != "crane"
    assert main(["--base", str(base), "-o", str(tmp_path), "--device", "cpu", "--generate",
                 "Say crane.", *pattern]) == 0
    assert capsys.readouterr().out == "crane\n"
    load_adapter(model, tmp_path)
    assert adapter_root(model).config == AdapterConfig(layers=3, prompt=8)


def test_the_same_seed_gives_the_same_adapter(base: Path, tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run(base, tmp_path / name, "--epochs", "1", "--seed", seed, "--batch", "2") == 0
        files.append((tmp_path / name / TENSORS).read_bytes())
    assert files[0] == files[1] != files[2]
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert config["adapter"]["layers"] == 1  # all but the lowest two


def test_steps_that_are_not_finite_are_skipped(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded(base)
    samples = tokenise_instructions([Instruction.model_validate(raw) for raw in SAMPLES], tokenizer)
    insert_adapter(model, AdapterConfig(layers=2, prompt=4))
    forward, calls, kept = type(model).forward, [0], {}

    def poisoned(self: Any, *args: Any, **given: Any) -> Any:
        out = forward(self, *args, **given)
        calls[0] += 1
        if calls[0] == 3:  # the first step of the second epoch
            kept.update(self.state_dict())
            kept.update({name: values.clone() for name, values in kept.items()})
            out.loss = out.loss * math.nan
        if calls[0] == 4:
            assert all(torch.equal(values, kept[name])
                       for name, values in self.state_dict().items())
        return out

    monkeypatch.setattr(type(model), "forward", poisoned)
    logs = fine_tune(model, samples, Recipe(epochs=3, batch=2, rate=0.01))
    assert calls == [6] and kept
    assert [(log.steps, log.skipped) for log in logs] == [(2, 0), (1, 1), (2, 0)]
    assert "1 steps skipped (not finite)" in logs[1].line() and "skipped" not in logs[2].line()
    assert all(log.loss is not None and math.isfinite(log.loss) for log in logs)
    assert all(values.isfinite().all() for values in model.state_dict().values())


def test_an_epoch_without_a_finite_step_is_reported(base: Path) -> None:
    model, _ = loaded(base)
    insert_adapter(model, AdapterConfig(layers=1, prompt=4))
    # No token of the only sample has a loss, whose mean is then 0 / 0.
    logs = fine_tune(model, [TokenisedInstruction((1, 4, 5), 3)], Recipe(epochs=1))
    assert logs[0].loss is None and logs[0].line().startswith("epoch 1: loss none")


def test_rates_rise_and_fall() -> None:
    factors = [rate_factor(step, 10, 0.4) for step in range(10)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[7] == pytest.approx(0.5) and factors[4:] == sorted(factors[4:], reverse=True)
    assert rate_factor(10, 10, 0.4) == pytest.approx(0)
    assert rate_factor(0, 1, 0.0) == 1


def test_bad_input_is_one_line_and_status_2(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    MODELS.from_config(AutoConfig.for_model(
        "gpt2", n_embd=16, n_layer=1, n_head=2, vocab_size=8)).save_pretrained(other)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((base / name).read_bytes())
    odd, empty = tmp_path / "odd", tmp_path / "empty"
    for folder, text in ((odd, '{"model_type": "starship"}'), (empty, '{"model_type": "llama"}')):
        folder.mkdir()
        (folder / "config.json").write_text(text)
    out = tmp_path / "out"
    capsys.readouterr()
    for where, more, message in (
        (tmp_path / "none", [], "none': has no config.json; give the folder of a model"),
        (other, [], "base='gpt2': adapters do not fit this family"),
        (odd, [], "odd': cannot be loaded ("), (empty, [], "empty': cannot be loaded ("),
        (base, ["--layers", "4"], "layers=4: must be from 1 to 3"),
        (base, ["--prompt", "0"], "prompt=0"), (base, ["--epochs", "0"], "epochs=0: must be 1"),
        (base, ["--rate", "-1"], "rate=-1.0: must be above 0"),
        (base, ["--batch", "0"], "batch=0: must be 1"),
        (base, ["--pattern", "9:8"], "9:8"),
        (base, ["--max-tokens", "20"], "samples.json, item 1="),
        (base, ["--generate", ""], "--generate='': must say something"),
    ):
        assert run(where, out, *more) == 2, message
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error, error
    assert not (out / TENSORS).exists()
    arguments = ["--base", str(base), "-o", str(out)]
    assert main(arguments) == 2
    assert "--data=None: is needed to train" in capsys.readouterr().err
    assert main([*arguments, "--generate", "Say it."]) == 2
    assert "adapter_config.json': cannot be read" in capsys.readouterr().err
    with pytest.raises(ParameterError, match="has no adapter"):
        fine_tune(loaded(base)[0], [], Recipe())
