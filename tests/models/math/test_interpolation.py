"""MathCodeInstruct's pipeline with scripted models: what every step keeps, drops and counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from algorithms import ParameterError
from models.jsonl import read_jsonl, write_jsonl
from models.math.interpolation import (
    Candidate,
    InterpolationOptions,
    Provenance,
    Stage,
    build_dataset,
    interpolate,
    judge,
    keep_right,
    self_distil,
)
from models.math.problems import Problem
from models.math.sandbox import Outcome
from models.math.similarity import SeedIndex
from models.math.solution import Block, GroundTruth, Message, Trace, parse, read_traces
from models.math.solver import MathCoder

EASY = [Problem(id=str(n), source="gsm8k", answer=str(2 * n),
                question=f"Tom has {n} apples and buys as many again. How many has he now?")
        for n in range(3)]
HARD = [Problem(id="algebra/1", source="math", answer="4",
                question=r"Find the largest root of the equation $x^2 - 5x + 4 = 0$.")]
NEW = "A train covers {n} km in two hours. At the same speed, how far does it go in seven hours?"
END, OVER = "<|endofblock|>", "<|endofmessage|>"


class Script:
    """A model that answers each request by a function of its text, and keeps the requests."""

    def __init__(self, answer: Callable[[str, int], str]) -> None:
        self.answer, self.prompts = answer, list[str]()
        self.temperatures, self.seeds, self.sizes = set[float](), list[int](), list[int]()

    def generate(self, prompts: Sequence[str], *, stop: Sequence[str], max_new_tokens: int,
                 temperature: float = 0.0, seed: int = 0) -> list[str]:
        assert END in stop
        start = len(self.prompts)
        self.prompts += prompts
        self.temperatures.add(temperature)
        self.seeds.append(seed)
        self.sizes.append(len(prompts))
        return [self.answer(prompt, start + at) for at, prompt in enumerate(prompts)]


class Calculator:
    """A stand-in for the sandbox, which tests of the solver cover."""

    def run(self, code: str) -> Outcome:
        return Outcome(status="ok", output=code.partition("print ")[2], seconds=0.0)

    def close(self) -> None:
        pass


def solved(answer: str, truth: str | None = "4", question: str = "2 + 2?") -> Trace:
    return Trace(
        messages=(Message(role="user", content=(Block(type="text", content=question),)),
                  Message(role="assistant", content=(Block(type="text", content=answer),))),
        ground_truth=None if truth is None else GroundTruth(answer=truth))


def test_d0_keeps_right_answers_once() -> None:
    stage = Stage("right answers")
    traces = [solved(r"\boxed{4}"), solved(r"So $\boxed{4.0}$"), solved(r"\boxed{5}"),
              solved("4", truth=None), solved("who knows about all of that"), solved(r"\boxed{4}")]
    kept = keep_right(traces, stage)
    assert [each.messages for each in kept] == [traces[0].messages, traces[1].messages]
    assert {each.provenance.kind for each in kept} == {"seed"}
    assert (stage.entered, stage.kept) == (6, 2)
    assert stage.dropped == {"wrong answer": 1, "no ground truth": 1, "no answer": 1,
                             "duplicate": 1}


def test_new_problems_lie_between_their_examples_and_copies_are_dropped() -> None:
    written = [
        "<|text|>**New problem:** " + NEW.format(n=120) + END, NEW.format(n=120),
        EASY[0].question, HARD[0].question.upper(), "What is it?", "",
        "Problem: Six friends share 90 sweets so that each has two more than the one before. How "
        "many has the first?\nSolution: 10"]
    script = Script(lambda prompt, at: written[at])
    stage = Stage("interpolation")
    options = InterpolationOptions(batch=3, seed=5)
    found = interpolate(script, EASY, HARD, len(written), stage, options)
    assert [each.question for each in found] == [
        NEW.format(n=120), "Six friends share 90 sweets so that each has two more than the one "
        "before. How many has the first?"]
    assert (stage.entered, stage.kept) == (7, 2)
    assert stage.dropped == {"duplicate": 1, "copy of a seed problem": 2, "too short": 2}
    assert script.sizes == [3, 3, 1] and script.seeds == [5, 8, 11]
    assert script.temperatures == {1.0}
    for number, candidate in ((0, found[0]), (6, found[1])):
        user = parse(script.prompts[number].removesuffix("<|assistant|>"))[1].content[0].content
        easy = next(each for each in EASY if f"gsm8k:{each.id}" == candidate.provenance.easy)
        assert user.index(easy.question) < user.index(HARD[0].question)
        assert candidate.provenance.hard == "math:algebra/1"
    assert {each.provenance.easy for each in interpolate(
        Script(lambda prompt, at: f"{at} {NEW} {at * 7} {at + 5} {at * at} {at}"), EASY, HARD, 40,
        Stage(""), InterpolationOptions(similarity=1.0))} == {"gsm8k:0", "gsm8k:1", "gsm8k:2"}


def verdict_of(harder_than_easy: str, easier_than_hard: str) -> Callable[[str, int], str]:
    """A judge that prefers a text, wherever it stands: ``new``, ``seed``, ``first`` or nothing."""
    def answer(prompt: str, at: int) -> str:
        first = prompt[prompt.index("Problem 1:\n"):prompt.index("Problem 2:\n")]
        wish = easier_than_hard if HARD[0].question in prompt else harder_than_easy
        if wish in ("new", "seed"):
            new_first = "train" in first
            return f"<|text|>Problem {1 if new_first == (wish == 'new') else 2}.{END}"
        fixed = {"first": "problem 1", "second": "Problem 2", "tie": "Tie"}
        return fixed.get(wish, "I cannot say.")
    return answer


@pytest.mark.parametrize(("against_easy", "against_hard", "reason"), [
    ("new", "seed", ""), ("seed", "seed", "not harder than the easy example"),
    ("new", "new", "not easier than the hard example"),
    ("first", "seed", "not harder than the easy example"),
    ("second", "seed", "not harder than the easy example"),
    ("new", "tie", "not easier than the hard example"), ("new", "?", "no verdict"),
])
def test_the_judge_is_asked_in_both_orders(
    against_easy: str, against_hard: str, reason: str
) -> None:
    candidate = Candidate(NEW, Provenance(kind="interpolated", easy="gsm8k:1",
                                          hard="math:algebra/1"))
    script, stage = Script(verdict_of(against_easy, against_hard)), Stage("difficulty")
    kept = judge(script, [candidate], EASY, HARD, stage)
    assert len(script.prompts) == 4 and script.temperatures == {0.0}
    assert stage.entered == 1 and stage.dropped == ({reason: 1} if reason else {})
    if not reason:
        assert kept[0].provenance.judged == {"easy": "Problem 2", "hard": "Problem 1"}


def solver(answers: dict[str, list[str]]) -> tuple[MathCoder, Script]:
    """A solver of problems by name; each sample runs code that prints its next answer."""
    left = {name: iter(texts) for name, texts in answers.items()}

    def answer(prompt: str, at: int) -> str:
        if prompt.endswith("<|assistant|>"):
            name = next(name for name in left if name in prompt)
            return f"<|code|>print {next(left[name])}{END}"
        output = prompt.rpartition("<|execution|>")[2].removesuffix(END)
        return f"<|text|>{output}{END}{OVER}" if output != "?" else "<|text|>"

    script = Script(answer)
    return MathCoder(script, Calculator), script


def test_problems_whose_samples_agree_are_kept() -> None:
    names = {"agree": ["7", "7.0", "14/2"], "differ": ["7", "7", "8"], "cut": ["7", "7", "?"]}
    model, script = solver(names)
    candidates = [Candidate(name, Provenance(kind="interpolated")) for name in names]
    stage = Stage("self-distillation")
    kept, = self_distil(model, candidates, stage)
    assert stage.entered == 3 and stage.dropped == {"answers differ": 1, "no answer": 1}
    assert kept.provenance.answers == ("7", "7.0", "14/2")
    assert kept.ground_truth == GroundTruth(answer="7")
    assert [block.type for block in kept.messages[-1].content] == ["code", "execution", "text"]
    assert script.temperatures == {0.7}


def test_the_whole_pipeline_writes_a_file_of_traces(tmp_path: Path) -> None:
    writer = Script(lambda prompt, at: NEW.format(n=120 if at else 0) if at < 2 else "No.")
    model, _ = solver({"covers 0 km": ["0", "0.0", "0"], "covers 120 km": ["420", "420", "421"]})
    data = build_dataset(
        [solved(r"\boxed{4}"), solved(r"\boxed{5}")], EASY, HARD, 3, writer=writer, solver=model,
        judged_by=Script(verdict_of("new", "seed")),
        options=InterpolationOptions(samples=3, similarity=0.9))
    assert [(stage.name, stage.entered, stage.kept) for stage in data.stages] == [
        ("right answers", 2, 1), ("interpolation", 3, 2), ("difficulty", 2, 2),
        ("self-distillation", 2, 1)]
    path = tmp_path / "data.jsonl"
    write_jsonl(path, data.solutions)
    assert [trace.messages for trace in read_traces(path)] == [
        solution.messages for solution in data.solutions]
    kinds = [record.value["provenance"]["kind"] for record in read_jsonl(path)]
    assert kinds == ["seed", "interpolated"]


def test_copies_are_found_by_shared_triples() -> None:
    index = SeedIndex(0.6)
    index.add("a b c d e f", "known")
    assert index.find("A b c d e f") == "known"
    assert index.find("a b c d e x") == "known"  # 3 of 5
    assert index.find("a b c x y z") == ""
    index.add("Hi", "short")
    assert index.find("hi") == "short" and index.find("") == ""


@pytest.mark.parametrize(("call", "error"), [
    (lambda: InterpolationOptions(samples=0), "samples=0: must be 1 or more"),
    (lambda: InterpolationOptions(similarity=0.0), "similarity=0.0: must be above 0"),
    (lambda: interpolate(Script(lambda prompt, at: ""), [], HARD, 1, Stage("")), "easy=0: must ha"),
    (lambda: interpolate(Script(lambda prompt, at: ""), EASY, [], 1, Stage("")), "hard=0: must ha"),
])
def test_impossible_requests_are_refused(call: Callable[[], object], error: str) -> None:
    with pytest.raises(ParameterError, match=error):
        call()
