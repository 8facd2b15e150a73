"""Generated word problems: exact, solved by code and in words, checked, split by content."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator

import pytest
from sandbox_targets import needs_bwrap

from algorithms import ParameterError
from benchmarks.math.encoding import tokenizer
from benchmarks.math.shared_sandbox import SharedSandbox
from benchmarks.math.solutions import FORMS, Form, misread, solved
from benchmarks.math.word_problems import LANGUAGES, Problem, Step, problems
from models.llm.llama import LLAMA_SIZES
from models.math.grader import extract_answer
from models.math.solution import parse, render
from models.math.verdicts import final_verdict, stages

SIZES = tuple(LANGUAGES)
SEED = 11
COUNT = 150


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SharedSandbox]:
    with SharedSandbox() as opened:
        yield opened


def output(sandbox: SharedSandbox, code: str) -> str:
    outcome = sandbox.run((code,))
    assert outcome.status == "ok", outcome.output
    return outcome.output


@needs_bwrap
@pytest.mark.parametrize("size", SIZES)
def test_code_solutions_print_the_gold_answer(size: str, sandbox: SharedSandbox) -> None:
    asked = problems("test", COUNT, SEED, size)
    printed = output(sandbox, "\n".join(problem.code for problem in asked))
    assert printed.split("\n") == [problem.answer for problem in asked], SEED


@needs_bwrap
@pytest.mark.parametrize("size", SIZES)
def test_checks_accept_the_gold_answer_and_no_other(size: str, sandbox: SharedSandbox) -> None:
    chooser = random.Random(SEED)
    checks: list[str] = []
    for problem in problems("test", COUNT, SEED, size):
        right = int(problem.answer)
        checks += [problem.check(str(answer)) for answer in
                   (right, right + 1, right - 1, misread(problem, chooser).answer)]
    printed = output(sandbox, "\n".join(checks)).split("\n")
    assert printed == ["True", "False", "False", "False"] * COUNT, SEED


def test_equations_in_words_are_true() -> None:
    for problem in problems("train", COUNT, SEED):
        for equation in problem.calculations.removesuffix(".").split(". "):
            left, right = equation.split(" = ")
            assert eval(left) == int(right), (SEED, equation)
        assert equation.endswith(f" {problem.answer}")


@pytest.mark.parametrize("form", FORMS)
def test_solutions_end_in_the_gold_answer(form: Form) -> None:
    for problem in problems("train", 30, SEED):
        messages = solved(problem, form)
        texts = [block.content for block in messages[-1].content if block.type == "text"]
        answers = [extract_answer(text) for text in texts if "boxed" in text]
        assert answers == [problem.answer], (SEED, texts)
        assert ("code" in {block.type for block in messages[-1].content}) is (form != "text")


@pytest.mark.parametrize("form", ["text-verified", "code-verified"])
def test_verdicts_and_stages_are_read(form: Form) -> None:
    chooser = random.Random(SEED)
    for problem in problems("train", 30, SEED):
        wrong = misread(problem, chooser)
        assert wrong.answer != problem.answer, (SEED, problem)
        for given, state in ((None, "True"), (wrong, "False")):
            messages = solved(problem, form, given)
            found = final_verdict(messages)
            assert (found.state, found.rule) == (state, "line"), (SEED, problem)
            assert "verify" in stages(messages)[-1]


@needs_bwrap
def test_executions_in_solutions_are_what_the_sandbox_prints(sandbox: SharedSandbox) -> None:
    chooser = random.Random(SEED)
    for problem in problems("train", 10, SEED):
        for given in (None, misread(problem, chooser)):
            blocks = solved(problem, "code-verified", given)[-1].content
            cells: tuple[str, ...] = ()
            for code, printed in itertools.pairwise(blocks):
                if code.type == "code":
                    cells += (code.content,)
                    assert sandbox.run(cells).output == printed.content, (SEED, problem)
            assert len(cells) == 2


@pytest.mark.parametrize("size", SIZES)
def test_splits_are_disjoint_and_seeded(size: str) -> None:
    train = [problems("train", 300, seed, size) for seed in (1, 1, 2)]
    test = problems("test", 300, 1, size)
    assert train[0] == train[1] != train[2]
    questions = [{each.question for each in found} for found in (*train, test)]
    assert [len(found) for found in questions] == [300] * 4
    assert not questions[3] & (questions[0] | questions[2])


def test_small_problems_have_all_operations_and_lengths() -> None:
    found = problems("train", 1000, SEED)
    operations = Counter(step.operation for each in found for step in each.steps)
    lengths = Counter(len(each.steps) for each in found)
    assert set(operations) == {"add", "subtract", "multiply", "divide", "percent", "discount",
                               "change"}
    assert min(operations.values()) > 30, operations
    assert set(lengths) == {1, 2, 3} and min(lengths.values()) > 150, lengths
    assert all(value > 0 for each in found for value in each.values)


@pytest.mark.parametrize(("step", "value", "wanted"), [
    (Step("divide", 4), 12, 3), (Step("divide", 5), 12, None), (Step("subtract", 12), 12, None),
    (Step("percent", 25), 12, 3), (Step("percent", 25), 13, None), (Step("discount", 25), 12, 9),
    (Step("change", 20), 12, 8), (Step("multiply", 20), 12, 240)])
def test_steps_come_out_exactly_or_not_at_all(step: Step, value: int, wanted: int | None) -> None:
    assert step.apply(value) == wanted


@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_lossless_and_fit_the_model(size: str) -> None:
    words, chooser = tokenizer(size), random.Random(SEED)
    assert len(words) <= LLAMA_SIZES[size].vocabulary
    for problem in problems("test", COUNT, SEED, size):
        for form in FORMS:
            for given in (None, misread(problem, chooser)):
                messages = solved(problem, form, given)
                text = render(messages)
                ids = words(text)["input_ids"]
                assert words.unk_token_id not in ids, (SEED, text)
                decoded = str(words.decode(ids))
                assert decoded == text, SEED
                assert parse(decoded) == messages


def test_numbers_have_the_same_tokens_everywhere() -> None:
    words = tokenizer("small")
    for text in (" 407 apples", "count = 407\n", "back * 407 ", "\\boxed{407}", "407"):
        assert "407" in "".join(f"{each}" for each in words.tokenize(text))
        assert [each for each in words.tokenize(text) if each.strip().isdigit()] == ["4", "0", "7"]


@pytest.mark.parametrize(("arguments", "message"), [
    (("training", 3, 0), r"split='training': must be one of train, test"),
    (("test", 0, 0), r"count=0: must be at least 1"),
    (("test", 3, 0, "smal"), r"size='smal': must be one of tiny, small.*small")])
def test_bad_requests_are_named(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        problems(*arguments)  # type: ignore[arg-type]


def test_an_unknown_form_is_named() -> None:
    with pytest.raises(ParameterError, match=r"form='txt': must be one of text, code"):
        solved(problems("test", 1, 0)[0], "txt")  # type: ignore[arg-type]


@needs_bwrap
def test_the_shared_sandbox_keeps_problems_apart(sandbox: SharedSandbox) -> None:
    one, other = sandbox.session(), sandbox.session()
    assert one.run("count = 41").output == ""
    assert other.run("print(count)").status == "error"
    assert one.run("print(count + 1)").output == "42"
    before = sandbox.executed
    again = sandbox.session()
    assert again.run("count = 41").output == ""
    assert again.run("print(count + 1)").output == "42"
    assert sandbox.executed == before
    again.close()
    assert again.run("print(count)").status == "error"


@needs_bwrap
def test_the_shared_sandbox_outlives_a_cell_that_ends_its_process(sandbox: SharedSandbox) -> None:
    problem: Problem = problems("test", 1, SEED)[0]
    lost = sandbox.session()
    assert lost.run("import os; os._exit(3)").status == "killed"
    assert output(sandbox, problem.code + " ") == problem.answer
