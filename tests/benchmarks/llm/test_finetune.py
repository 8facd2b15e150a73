"""Fine-tuning by command: a tiny model of Hugging Face in a folder, from samples to an answer."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from algorithms import ParameterError
from benchmarks.llm import finetune
from benchmarks.llm.finetune import PRUNING, EpochLog, Recipe, fine_tune, main, rate_factor
from models.llm.adapter import AdapterConfig, adapter_root, insert_adapter
from models.llm.checkpoint import CONFIG, TENSORS, load_adapter
from models.llm.decoding import greedy_answer
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


def run(base: Path, out: Path, *more: str, samples: object = SAMPLES) -> int:
    """The command on samples, those above by default, in a file beside the adapter's folder."""
    beside = next(parent for parent in out.parents if parent.is_dir())
    data = beside / "samples.json"
    data.write_text(json.dumps(samples))
    return main(["--base", str(base), "--data", str(data), "-o", str(out), "--device", "cpu",
                 *more])


def ask(base: Path, out: Path, *more: str) -> int:
    """The command without training."""
    return main(["--base", str(base), "-o", str(out), "--device", "cpu", "--generate",
                 "Say crane.", *more])


ONE_STEP = "--epochs", "1", "--batch", "4"


def loaded(base: Path) -> Any:
    return finetune.load_base(base, torch.float32, "cpu")


@pytest.mark.parametrize("pattern", [[], ["--pattern", "2:8", "--method", "bdwp"]])
def test_from_samples_to_an_answer(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pattern: list[str]
) -> None:
    out = tmp_path / "out"
    assert run(base, out, "--layers", "3", "--prompt", "8", "--rate", "0.05", "--epochs", "60",
               "--batch", "4", "--generate", "Say crane.", *pattern) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"4 of 4 samples, {3 * (8 * 64 + 4):,} parameters train"
    assert lines[-2:] == [f"adapter in {out}", "crane"]
    logs = [json.loads(line) for line in (out / finetune.LOG).read_text().splitlines()]
    assert [log["epoch"] for log in logs] == list(range(1, 61)) and len(lines) == 63
    assert logs[-1]["loss"] < 0.5 * logs[0]["loss"]
    assert [gate["layer"] for gate in logs[-1]["gates"]] == [0, 1, 2]
    assert all(gate["largest"] >= gate["mean"] > 0.01 for gate in logs[-1]["gates"])
    # Without the adapter, and then with the saved one, which must be what was trained.
    model, tokenizer = loaded(base)
    asked = Instruction(instruction="Say crane.")
    assert greedy_answer(model, tokenizer, asked, 4) != "crane"
    for said in ([], pattern, pattern[:2]):
        assert ask(base, out, *said) == 0
        assert capsys.readouterr().out == "crane\n"
    load_adapter(model, out)
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


def test_a_base_is_pruned_as_in_training(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned: list[tuple[str, str]] = []
    monkeypatch.setattr(finetune, "sparsify", lambda _, method, pattern, rules: pruned.append(
        (method, pattern)))
    dense, sparse = tmp_path / "dense", tmp_path / "sparse"
    assert run(base, dense, *ONE_STEP) == run(base, sparse, *ONE_STEP, "--pattern", "2:8") == 0
    assert pruned == [("bdwp", "2:8")]
    assert ask(base, dense) == ask(base, dense, "--pattern", "dense") == 0 and len(pruned) == 1
    assert ask(base, sparse) == ask(base, sparse, "--method", "bdwp") == 0
    assert pruned == [("bdwp", "2:8")] * 3
    capsys.readouterr()
    for out, more, message in (
        (dense, ["--pattern", "2:8"], f"--pattern='2:8': the adapter in {dense} was trained on a "
         "base that is dense; nearest legal value: dense"),
        (dense, ["--method", "sdgp"], "--method='sdgp': the adapter in "),
        (sparse, ["--pattern", "dense"], "was trained on a base that is pruned 2:8 by bdwp; "
         "nearest legal value: 2:8"),
        (sparse, ["--pattern", "2:4"], "--pattern='2:4': the adapter in "),
        (sparse, ["--method", "sdgp"], "nearest legal value: bdwp"),
    ):
        assert ask(base, out, *more) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    # Adapters that were saved by other means: the command line says it all.
    (sparse / PRUNING).unlink()
    assert ask(base, sparse, "--pattern", "2:4", "--method", "sdgp") == ask(base, sparse) == 0
    assert pruned[3:] == [("sdgp", "2:4")]
    (sparse / PRUNING).write_text('{"pattern": "2:8"}')
    capsys.readouterr()
    assert ask(base, sparse) == 2
    assert f"{sparse / PRUNING}: method=None: field required" in capsys.readouterr().err


def test_options_reach_what_they_are_for(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(base, out, *ONE_STEP, "--gate", "scalar", "--dtype", "bfloat16", "--prompt", "3",
               "--generate", "Say crane.", "--input", "heron crane") == 0
    assert json.loads((out / CONFIG).read_text())["adapter"] | {"gate": "scalar", "prompt": 3} == (
        json.loads((out / CONFIG).read_text())["adapter"])
    tensors = load_file(out / TENSORS)
    assert {len(values) for name, values in tensors.items() if name.endswith("gate")} == {1}
    assert all(values.dtype == torch.float32 and values.isfinite().all()
               for values in tensors.values())
    printed = capsys.readouterr().out.splitlines()[-1]
    model, tokenizer = finetune.load_base(base, torch.bfloat16, "cpu")
    assert model.dtype == torch.bfloat16
    load_adapter(model, out)
    with_input, without = (greedy_answer(model, tokenizer, Instruction(
        instruction="Say crane.", input=given)) for given in ("heron crane", ""))
    assert printed == with_input != without


def test_samples_that_are_too_long_are_cut_or_left_out(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[list[int]] = []
    train = fine_tune

    def watched(model: Any, samples: Any, *more: Any) -> Any:
        lengths.append([len(sample.ids) for sample in samples])
        return train(model, samples, *more)

    monkeypatch.setattr(finetune, "fine_tune", watched)
    longer = {**SAMPLES[0], "output": "crane " * 9}
    options: dict[str, Any] = {"samples": [longer, *SAMPLES]}
    out = tmp_path / "out"
    assert run(base, out, *ONE_STEP, **options) == 0
    most = str(min(lengths[0]))
    assert run(base, out, *ONE_STEP, "--max-tokens", most, **options) == 2
    error = capsys.readouterr().err
    assert f"samples.json, item 1={max(lengths[0])}: its sequence has more than {most}" in error
    for policy, count in (("truncate", 5), ("drop", 4)):
        assert run(base, out, *ONE_STEP, "--max-tokens", most, "--overlong", policy,
                   **options) == 0
        assert f"{count} of 5 samples" in capsys.readouterr().out
        assert lengths[-1] == [int(most)] * count


def test_logs_without_gates(base: Path) -> None:
    model, tokenizer = loaded(base)
    insert_adapter(model, AdapterConfig(layers=1, prompt=4, gated=False))
    samples = tokenise_instructions([Instruction.model_validate(SAMPLES[0])], tokenizer)
    log, = fine_tune(model, samples, Recipe(epochs=1))
    assert log.loss is not None and log.line() == f"epoch 1: loss {log.loss:.4f}"
    assert EpochLog(2, None, 0, 3, 0.1, ()).line() == (
        "epoch 2: loss none, 3 steps skipped (not finite)")


def _truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:4000])


def _widen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 128}))


def _mistype(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))


def _lose(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(("damage", "message"), [
    (_truncate, "cannot be loaded (Error while deserializing header"),
    (_widen, "has lm_head.weight of shape (28, 64) where its config.json needs (28, 128)"),
    (_mistype, "cannot be loaded (Validation error for field 'hidden_size'"),
    (_lose, "has no weights model.layers.1.mlp.up_proj.weight"),
    (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot be loaded ("),
])
def test_a_base_that_is_not_whole_is_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object], message: str,
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    damage(folder)
    assert run(folder, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"--base='{folder}': ") and message in error, error
    assert error.count("\n") == 1


def test_folders_that_cannot_be_written_are_refused_before_training(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "fine_tune", lambda *_: pytest.fail("trained"))
    file = tmp_path / "file"
    file.write_text("in the way")
    for out in (file, file / "out"):
        assert run(base, out) == 2
        error = capsys.readouterr().err
        assert f"--out='{out}': cannot be written (" in error and error.count("\n") == 1
    assert file.read_text() == "in the way"


def test_a_failure_to_save_is_one_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / PRUNING).mkdir(parents=True)
    assert run(base, out, *ONE_STEP) == 2
    error = capsys.readouterr().err
    assert error == f"--out='{out}': cannot be written (Is a directory)\n"


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
        (other, [], "--base='gpt2': adapters do not fit this family"),
        (odd, [], "odd': cannot be loaded ("), (empty, [], "empty': cannot be loaded ("),
        (base, ["--layers", "4"], "--layers=4: must be from 1 to 3"),
        (base, ["--prompt", "0"], "--prompt=0: "), (base, ["--epochs", "0"], "--epochs=0: must"),
        (base, ["--rate", "-1"], "--rate=-1.0: must be above 0"),
        (base, ["--rate", "inf"], "--rate=inf: must be above 0 and finite"),
        (base, ["--rate", "nan"], "--rate=nan: must be above 0 and finite"),
        (base, ["--batch", "0"], "--batch=0: must be 1"),
        (base, ["--seed", "9" * 23], f"--seed={'9' * 23}: must be from 0 to 2**64 - 1"),
        (base, ["--seed", "-1"], "--seed=-1: must be from 0"),
        (base, ["--pattern", "9:8"], "--pattern='9:8': "),
        (base, ["--pattern", ""], "--pattern='': must be 'dense' or 'N:M'"),
        (base, ["--method", "bdwp"], "--method='bdwp': prunes nothing of a dense base"),
        (base, ["--max-tokens", "20"], "samples.json, item 1="),
        (base, ["--max-tokens", "20", "--overlong", "drop"], "has no sample of at most 20 tokens"),
        (base, ["--generate", ""], "--generate='': must say something"),
        (base, ["--input", "heron"], "--input='heron': belongs to an instruction"),
        (base, ["--device", "foo"], "--device='foo': cannot be used (Expected one of cpu"),
        (base, ["--device", "meta"], "--device='meta': cannot be used ("),
    ):
        assert run(where, out, *more) == 2, message
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error, error
    assert not (out / TENSORS).exists()
    assert run(base, out, samples=[{"instruction": "Say it.", "output": " "}]) == 2
    assert "has no sample of at most 512 tokens that has an output" in capsys.readouterr().err
    assert run(base, out, samples=[]) == 2
    assert "--data='" in capsys.readouterr().err
    arguments = ["--base", str(base), "-o", str(out)]
    assert main(arguments) == 2
    assert "--data=None: is needed to train" in capsys.readouterr().err
    assert main([*arguments, "--generate", "Say it."]) == 2
    error = capsys.readouterr().err
    assert error.startswith("--out='") and "adapter_config.json': cannot be read" in error
    for option, value in (("--layers", "2"), ("--prompt", "10"), ("--gate", "head"),
                          ("--rate", "0.1"), ("--epochs", "5"), ("--batch", "32"),
                          ("--max-tokens", "512"), ("--overlong", "drop"), ("--seed", "0")):
        assert ask(base, out, option, value) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"{option}=") and "is for training, which needs --data" in error
    model = loaded(base)[0]
    with pytest.raises(ParameterError, match="has no adapter"):
        fine_tune(model, [], Recipe())
    insert_adapter(model, AdapterConfig(layers=1, prompt=1))
    with pytest.raises(ParameterError, match="samples=0: must be 1 or more"):
        fine_tune(model, [], Recipe())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(base: Path) -> None:
    with pytest.raises(ParameterError, match=r"--device='cuda': cannot be used \(.*: cpu"):
        finetune.load_base(base, torch.float32, "cuda")
