"""The generated language: seeded, split by content, answered rightly, learnable at tiny size."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from algorithms import ParameterError
from benchmarks.llm import claims
from benchmarks.llm.captioning import Captioner, Mixture
from benchmarks.llm.encoding import encode, packed_corpus, tokenizer
from benchmarks.llm.pictures import caption, question, scenes
from benchmarks.llm.pretraining import pretrained
from benchmarks.llm.record import Outcome, Runs
from benchmarks.llm.runs import VARIANTS, get_variant, settings_key
from benchmarks.llm.tasks import SPLITS, Split, corpus, instruction_data, language
from benchmarks.llm.tuning import TuningRecipe, exact_hits, exact_match, minimise_steps, tune
from benchmarks.training import reproducible
from models.llm.adapter import AdapterConfig, adapter_parameters, insert_adapter
from models.llm.adapter_v2 import v2_config
from models.llm.instructions import IGNORED, Instruction, instruction_batches
from models.llm.llama import LLAMA_SIZES, Llama, llama

SIZES = ("tiny", "small")

# By words that only the phrases of one skill have; written down apart from the generator.
MEANINGS: dict[str, Callable[[list[str]], list[str]]] = {
    "same words|words again|once more": lambda x: x,
    "backwards|in reverse|from the end": lambda x: [x[-1 - i] for i in range(len(x))],
    "first|at the start|before all": lambda x: [x[0]],
    "second|place two|after one": lambda x: [x[1]],
    "last|at the end|after all": lambda x: [x[len(x) - 1]],
    "number of words|length|count of": lambda x: [f"{sum(1 for _ in x)}"],
    "in order|sorted|go up": lambda x: [f"{n}" for n in sorted(map(int, x))],
    "largest|biggest|above others": lambda x: [f"{max(map(int, x))}"],
    "smallest|lowest|below others": lambda x: [f"{min(map(int, x))}"],
    "plural|for many|than one": lambda x: [word + "s" for word in x],
    "sum|total|together": lambda x: [f"{int(x[0]) + int(x[1])}"],
    "the colour|hue|paint": lambda x: [x[0]],
    "the shape|the form|the kind": lambda x: [x[1]],
    "the place|spot|the part": lambda x: [x[2]],
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as these only wait for a second thread."""
    with reproducible(0):
        yield


def meaning(sample: Instruction) -> str:
    """The key of :data:`MEANINGS` that a sample's instruction asks for."""
    found = [words for words in MEANINGS if re.search(words, sample.instruction)]
    assert len(found) == 1, sample
    return found[0]


def inputs(split: Split, size: str, count: int = 1400) -> set[tuple[str, str]]:
    return {(meaning(sample), sample.input) for seed in (0, 1)
            for sample in instruction_data(split, count, seed, size)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_right(split: Split, size: str) -> None:
    samples = instruction_data(split, 700, 3, size)
    for sample in samples:
        expected = MEANINGS[meaning(sample)](sample.input.split())
        assert sample.output.split() == expected, sample
    assert len({meaning(sample) for sample in samples}) == len(language(size).skills)


@pytest.mark.parametrize("size", SIZES)
def test_equal_arguments_give_equal_data(size: str) -> None:
    for split in SPLITS:
        once, again, other = (instruction_data(split, 50, seed, size) for seed in (5, 5, 6))
        assert once == again != other
    rows, same, others = (list(islice(packed_corpus(size, 32, seed), 20)) for seed in (5, 5, 6))
    assert rows == same != others


@pytest.mark.parametrize("size", SIZES)
def test_held_out_inputs_are_in_no_instruction_of_training(size: str) -> None:
    trained = inputs("train", size)
    for split in SPLITS[1:]:
        assert not trained & inputs(split, size)


def test_corpus_has_no_held_out_input_but_facts() -> None:
    spoken = language("small")
    # Skills come in turn, so that the first samples name each.
    words = {meaning(sample): skill.word for sample, skill in
             zip(instruction_data("test", len(spoken.skills), 0), spoken.skills, strict=True)}
    held = {(words[asked], given) for asked, given in inputs("test", "small")}
    told = {(word, given) for sentence in islice(corpus("small", 1), 20_000)
            if sentence.text.endswith(" = ")
            for word, _, given in [sentence.text.removesuffix(" = ").partition(" ")]}
    facts = {skill.word for skill in spoken.skills if skill.facts}
    assert {word for word, _ in held & told} == facts
    assert len(told) > 1000


def test_paraphrases_are_in_the_corpus_and_not_in_training() -> None:
    trained = {sample.instruction for seed in (0, 1)
               for sample in instruction_data("train", 1400, seed)}
    asked = {sample.instruction for sample in instruction_data("paraphrased", 700, 0)}
    assert not trained & asked
    told = " ".join(sentence.text for sentence in islice(corpus("small", 0), 3000))
    for skill in language("small").skills:
        assert skill.phrases[-1] in told
        assert not any(skill.phrases[-1] in instruction for instruction in trained)


@pytest.mark.parametrize("size", SIZES)
def test_vocabulary_holds_every_word(size: str) -> None:
    words = tokenizer(size)
    assert len(words) <= LLAMA_SIZES[size].vocabulary
    rows = [row.ids for row in islice(packed_corpus(size, 64, 0), 200)]
    samples = [sample for split in SPLITS
               for sample in encode(instruction_data(split, 300, 0, size), size)]
    ids = {token for sequence in [*rows, *(sample.ids for sample in samples)]
           for token in sequence}
    assert words.unk_token_id not in ids and max(ids) < len(words)
    assert max(len(sample.ids) for sample in samples) <= 32


def test_an_encoded_sample_reads_as_its_text() -> None:
    sample = Instruction(instruction="write the words backwards .", input="cat dog",
                         output="dog cat")
    ids, prompt = encode([sample], "small")[0]
    words = tokenizer("small")
    assert words.decode(list(ids[:prompt])) == (
        "<s> <task> ### instruction: write the words backwards . ### input: cat dog ### response:")
    assert words.decode(list(ids[prompt:])) == "dog cat </s>"


def test_answers_are_marked_in_packed_rows() -> None:
    words = tokenizer("small")
    checked = 0
    for row in islice(packed_corpus("small", 64, 0), 50):
        assert len(row.ids) == len(row.answers) == 64 and row.ids[0] == words.bos_token_id
        for place, text in enumerate(words.convert_ids_to_tokens(row.ids)[:-1]):
            if text in ("=", "->"):
                checked += 1
                assert row.answers[place + 1] and not row.answers[place]
    assert checked > 50


def test_pictures_of_test_show_what_none_of_training_shows() -> None:
    trained, tested = scenes("train", 600, 0), scenes("test", 200, 0)
    assert not {scene.words for scene in trained} & {scene.words for scene in tested}
    again = scenes("train", 600, 0)
    assert all(np.array_equal(np.asarray(a.picture), np.asarray(b.picture))
               for a, b in zip(trained[:20], again, strict=False))
    for scene in tested[:20]:
        assert caption(scene).output.split() == [question(scene, n).output for n in range(3)]


def test_pictures_show_what_they_say() -> None:
    colours = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1)}
    rows = {"top": slice(2, 15), "bottom": slice(17, 30)}
    checked = 0
    for scene in scenes("train", 400, 1):
        colour, _, place = scene.words
        if colour in colours and place in rows:
            pixels = np.asarray(scene.picture).astype(float)
            other = rows["bottom" if place == "top" else "top"]
            assert pixels[rows[place]].std() > pixels[other].std()
            bright = pixels[rows[place], 8:25].reshape(-1, 3)
            bright = bright[np.argsort(np.ptp(bright, 1) if colour != "white" else bright.sum(1))]
            shown = bright[-15:].mean(0)
            assert tuple(shown > 130) == tuple(bool(on) for on in colours[colour]), scene.words
            checked += 1
    assert checked > 30


def greedy(model: Llama, prompt: tuple[int, ...], end: int, most: int) -> list[int]:
    ids = list(prompt)
    while len(ids) < len(prompt) + most and ids[-1] != end:
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt):]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights of a tiny base, trained once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NMSAT_CACHE", str(tmp_path_factory.mktemp("cache")))
        told: list[float] = []
        made = pretrained("tiny", progress=lambda step, steps, loss: told.append(loss))
        assert len(told) == 10 and told[-1] < told[0] / 2
        again = pretrained("tiny", progress=lambda *_: pytest.fail("trained twice"))
        assert all(torch.equal(a, b) for a, b in zip(
            made.state_dict().values(), again.state_dict().values(), strict=True))
        return made.state_dict()


def loaded(weights: dict[str, torch.Tensor]) -> Llama:

    model = llama("tiny")
    model.load_state_dict(weights)
    return model


def test_teacher_forced_match_is_that_of_greedy_generation(base: dict[str, torch.Tensor]) -> None:
    """On a model that is right on some samples and wrong on others."""
    model = loaded(base).requires_grad_(True)
    samples = encode(instruction_data("train", 200, 0, "tiny"), "tiny")
    tune(model, samples, TuningRecipe(steps=25, batch=32, rate=2e-3), 0)
    model.eval()
    end = tokenizer("tiny").eos_token_id
    hits = []
    with torch.no_grad():
        for sample in samples[:60]:
            wanted = list(sample.ids[sample.prompt:])
            made = greedy(model, sample.ids[:sample.prompt], end, len(wanted))
            batch = next(instruction_batches([sample], 1))
            forced = bool(exact_hits(model(batch.ids), batch.labels))
            assert forced is (made == wanted)
            hits.append(forced)
    assert 0 < sum(hits) < len(hits)


def test_full_fine_tuning_of_a_tiny_base_is_above_chance(base: dict[str, torch.Tensor]) -> None:
    model = loaded(base)
    tested = encode(instruction_data("test", 150, 0, "tiny"), "tiny")
    assert exact_match(model, tested) < 5
    samples = encode(instruction_data("train", 600, 0, "tiny"), "tiny")
    tune(model, samples, TuningRecipe(steps=160, batch=32, rate=2e-3), 0)
    # Guesses of the right kind would be right in a fifth of all cases.
    assert exact_match(model, tested) > 40


def test_an_adapter_learns_and_leaves_the_base_alone(base: dict[str, torch.Tensor]) -> None:
    model = loaded(base)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        insert_adapter(model.base, AdapterConfig(layers=3, prompt=10))
    samples = encode(instruction_data("train", 600, 0, "tiny"), "tiny")
    told: list[float] = []
    tune(model, samples, TuningRecipe(steps=60, batch=32, rate=5e-2), 0,
         lambda step, steps, loss: told.append(loss))
    assert told[-1] < 0.7 * told[0]
    kept = {name: values for name, values in model.state_dict().items()
            if name.removeprefix("base.") not in adapter_parameters(model)}
    assert kept.keys() == base.keys()
    assert all(torch.equal(values, base[name]) for name, values in kept.items())


def test_a_captioner_learns_from_both_kinds_of_batches(base: dict[str, torch.Tensor]) -> None:
    model = loaded(base)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        insert_adapter(model.base, v2_config("tiny"))
    captioner = Captioner("tiny", 0, pictures=200, tested=20)
    samples = encode(instruction_data("train", 300, 0, "tiny"), "tiny")
    told: list[float] = []
    captioner.tune(model, samples, TuningRecipe(steps=0, batch=16, rate=1e-2),
                   Mixture("disjoint", 30, 30), 0, lambda step, steps, loss: told.append(loss))
    assert told[-1] < 0.6 * told[0]
    scores = captioner.scores(model)
    assert scores.keys() == {"caption", "word", "question", "expert"}
    assert all(0 <= score <= 100 for score in scores.values())
    known = tokenizer("tiny").get_vocab()
    assert all(word in known for text in captioner.captions(model) for word in text.split())
    with pytest.raises(ParameterError, match="must have a batch"):
        captioner.tune(model, samples, TuningRecipe(0, 16, 1e-2), Mixture("disjoint", 0, 0), 0)


def test_equal_seeds_tune_alike(base: dict[str, torch.Tensor]) -> None:
    samples = encode(instruction_data("train", 64, 0, "tiny"), "tiny")
    made = []
    for seed in (1, 1, 2):
        model = loaded(base)
        tune(model, samples, TuningRecipe(steps=3, batch=16, rate=1e-3), seed)
        made.append(model.state_dict()["base.lm_head.weight"])
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_labels_are_the_response_and_the_end() -> None:
    samples = encode(instruction_data("train", 30, 0), "small")
    end = tokenizer("small").eos_token_id
    for batch in instruction_batches(samples, 8):
        for ids, labels in zip(batch.ids, batch.labels, strict=True):
            said = labels[labels != IGNORED]
            assert said[-1] == end and len(said) >= 2
            assert torch.equal(ids[labels != IGNORED], said)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: instruction_data("train", 0, 0), "count=0: must be at least 1"),
    (lambda: instruction_data(cast(Any, "dev"), 1, 0), "split='dev': must be one of train, test"),
    (lambda: instruction_data("train", 1, 0, "full"), "size='full': must be one of tiny, small"),
    (lambda: scenes(cast(Any, "dev"), 1, 0), "split='dev': must be train or test"),
    (lambda: scenes("test", 0, 0), "count=0: must be at least 1"),
    (lambda: pretrained("full"), "size='full': must be one of tiny, small"),
    (lambda: get_variant("adaptor"), "nearest legal value: adapter"),
])
def test_bad_input_is_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)


# The record of claims.


def test_settings_change_with_the_variant() -> None:
    keys = {settings_key(variant) for variant in VARIANTS.values()}
    assert len(keys) == len(VARIANTS)


def recorded(path: Path, adapter: float, random_init: float) -> Path:
    runs = Runs(path)
    figures = {"adapter": adapter, "adapter, random init": random_init}
    for name in claims.CLAIMS["zero-init"].variants:
        for seed in (1, 2, 3):
            value = figures.get(name, 5.0) + seed
            runs.add(Outcome(variant=name, settings=settings_key(get_variant(name)), seed=seed,
                             scores={"test": value, "paraphrased": value - 1}, seconds=1.0))
    return path


@pytest.mark.parametrize(("random_init", "verdict"), [(70.0, "holds"), (90.0, "does not hold")])
def test_summary_prints_the_record(
    random_init: float, verdict: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recorded(tmp_path / "runs.jsonl", 80.0, random_init)
    assert claims.main(["--summary", "--claim", "zero-init", "--record", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "82.0 ± 1.0" in printed
    line, = (line for line in printed.splitlines() if "random gates, 4000 instructions" in line)
    assert f"{80 - random_init:+.1f} ± 0.0 points" in line and line.endswith(f": {verdict}")


@pytest.mark.parametrize(("words", "message"), [
    (["--claim", "zero"], "nearest legal value: zero-init"),
    (["--seeds", "0"], "--seeds=0: must be at least 1"),
    (["--summary"], "has no run of 'base alone' under these settings"),
])
def test_bad_command_lines_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert claims.main([*words, "--record", str(tmp_path / "runs.jsonl")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_record_that_cannot_be_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "run", lambda *_: pytest.fail("trained"))
    for path in (tmp_path / "none" / "runs.jsonl", tmp_path):
        assert claims.main(["--claim", "zero-init", "--record", str(path)]) == 2
        error = capsys.readouterr().err
        assert f"--record='{path}': must be a file in a folder that is there" in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(("steps", "calls"), [(19, 10), (25, 10), (10, 10), (3, 3), (100, 10)])
def test_progress_is_told_ten_times(steps: int, calls: int) -> None:
    told: list[tuple[int, int, float]] = []
    weight = torch.nn.Linear(1, 1)
    losses = ((lambda number=number: 0 * weight.weight.sum() + number) for number in range(steps))
    minimise_steps(weight, losses, TuningRecipe(steps=steps, batch=1, rate=1e-3),
                   lambda *given: told.append(given))
    assert [given[:2] for given in told] == [(call, calls) for call in range(1, calls + 1)]
    if steps == 25:
        assert [given[2] for given in told][:3] == [1, 3.5, 6]  # of steps 1 to 3, 4 and 5, 6 to 8


@pytest.mark.parametrize("bad", [0, 11, 24])
def test_every_loss_that_is_not_finite_is_seen(bad: int) -> None:
    weight = torch.nn.Linear(1, 1)
    losses = ((lambda number=number: weight.weight.sum() * (float("nan") if number == bad else 1))
              for number in range(25))
    with pytest.raises(ParameterError, match=f"training diverged in step {bad + 1}$"):
        minimise_steps(weight, losses, TuningRecipe(steps=25, batch=1, rate=1e-3))


def test_the_record_has_runs_of_every_claim(capsys: pytest.CaptureFixture[str]) -> None:
    assert claims.main(["--summary"]) == 0
    printed = capsys.readouterr().out
    assert "has no run" not in printed
    assert all(claim.title in printed for claim in claims.CLAIMS.values())
    assert "Gates that start at zero beat random gates, 400 instructions: " in printed
