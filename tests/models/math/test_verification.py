"""Code-based self-verification: prompts, stages, verdicts, attempts, and the repair loop."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms import ParameterError
from models.math.generation import PromptTooLongError
from models.math.prompts import PROMPTS, REPAIR, VERDICT_LINE, Prompt, get_prompt, recognise
from models.math.replay import recorded_cells
from models.math.sandbox import Outcome
from models.math.solution import Block, BlockType, Message
from models.math.solver import STOP, End, MathCoder, SolverOptions
from models.math.verdicts import (
    Rule,
    Stage,
    final_verdict,
    stages,
    verdicts,
    without_verdicts,
)
from models.math.verification import SelfVerifier, attempts
from models.math.voting import STATES, State

END, OVER = STOP
Written = tuple[BlockType, str]


def user(content: str) -> Message:
    return Message(role="user", content=(Block(type="text", content=content),))


def assistant(*content: Written) -> Message:
    return Message(role="assistant", content=tuple(
        Block(type=kind, content=text) for kind, text in content))


# Prompts.


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("problem", ["How much is 2 + 3?", "You ask?\n\nI answer.", " x "])
def test_a_question_is_recognised(name: str, problem: str) -> None:
    prompt = get_prompt(name)
    assert recognise(prompt.question(problem)) == (prompt, problem.lstrip("\n"))
    if prompt.verifies:
        question = prompt.question(problem, verdict_line=True)
        assert VERDICT_LINE in question
        assert recognise(question) == (prompt, problem)


def test_the_prompts_of_the_paper_are_there() -> None:
    assert {name for name, prompt in PROMPTS.items() if prompt.verifies} == {
        "csv", "csv-substeps", "natural"}
    assert PROMPTS["basic"].question("p") == "p"
    assert len({prompt.instruction for prompt in PROMPTS.values()}) == 6


def test_bad_prompts_are_named() -> None:
    with pytest.raises(ParameterError, match=r"prompt='cvs': must be one of basic, .*nearest legal "
                       "value: csv"):
        get_prompt("cvs")
    with pytest.raises(ParameterError, match="prompt basic verifies nothing"):
        PROMPTS["basic"].question("p", verdict_line=True)


# Verdicts.


@pytest.mark.parametrize(("text", "state"), [
    ("Verification: True", "True"),
    ("verification: FALSE", "False"),
    ("So it is 5.\n**Verification:** Uncertain.\n", "Uncertain"),
    ("> Verification = true", "True"),
    ("`Verification: False`", "False"),
    ("- Verification: True", "True"),
    ("Checks:\n1. Verification: True", "True"),
    ("Verification: False\nNow it is 6.\nVerification: True", "True"),
    # The line is believed, whatever the words around it.
    ("The answer is correct.\nVerification: False", "False"),
])
def test_verdict_lines(text: str, state: State) -> None:
    verdict = final_verdict([assistant(("text", text))])
    assert (verdict.state, verdict.rule) == (state, "line")
    assert verdict.evidence in text
    assert "erification" not in without_verdicts(text)


@pytest.mark.parametrize("text", [
    "Verification: Truely", "Verification: maybe", "The verification: True story.", "True", "",
    "Let's verify that the answer is correct.", "If the answer is wrong, we start again.",
    "Is the result correct?", "To check whether the answer is right, I substitute.",
    "The answer is False.", "The answer is True.", "The result is a right triangle.",
    "The true value is 3.", "The correct answer is 7.", "There was an error in the code.",
    "Now, let us check: the result should match the sum.", "She matches 5 pairs of socks.",
])
def test_no_verdict(text: str) -> None:
    assert final_verdict([assistant(("text", text))]) == ("Uncertain", "none", "")


@pytest.mark.parametrize(("text", "state"), [
    ("The answer is correct.", "True"),
    ("The answer has been verified using code.", "True"),
    ("This confirms that our answer is right.", "True"),
    ("The verification passed.", "True"),
    ("The solution x = 3 satisfies the equation.", "True"),
    ("The result matches the sum.", "True"),
    ("Let's check. The sum is 5.0. So the result is indeed correct.", "True"),
    ("The answer is not wrong.", "True"),
    ("The answer is no longer wrong.", "True"),
    ("The answer does not seem wrong.", "True"),
    ("The check did not fail.", "True"),
    ("The verification didn't fail.", "True"),
    ("The output is True.", "True"),
    ("The answer is not correct.", "False"),
    ("The answer does not seem correct.", "False"),
    ("The answer doesn't seem right.", "False"),
    ("The answer is no longer correct.", "False"),
    ("The check did not pass.", "False"),
    ("The check is false.", "False"),
    ("The answer is not necessarily correct.", "Uncertain"),
    ("The verification failed.", "False"),
    ("The result doesn't match the sum.", "False"),
    ("The answer was wrong; the correct answer is 7.", "False"),
    ("I made a mistake above.", "False"),
    ("There seems to be an error.", "False"),
    ("Our answer isn\u2019t right.", "False"),
    ("Our answer isn't right.", "False"),
    ("We cannot verify this answer with code.", "Uncertain"),
    ("There is no effective way to verify the answer.", "Uncertain"),
    ("The result could not be checked.", "Uncertain"),
    ("It is difficult to verify this numerically.", "Uncertain"),
    # The last sentence decides.
    ("The answer is wrong. After a change the answer is correct.", "True"),
    ("The result matches. No, the result is wrong.", "False"),
])
def test_verdicts_in_sentences(text: str, state: State) -> None:
    verdict = final_verdict([assistant(("text", text))])
    assert (verdict.state, verdict.rule) == (state, "sentence")
    assert verdict.evidence in text


SOLVED: tuple[Written, ...] = (("text", "Add."), ("code", "2 + 3"), ("execution", "5"))


@pytest.mark.parametrize(("written", "state", "rule"), [
    # A comparison that verifies counts; one that solves does not.
    ((*SOLVED, ("text", "Let's verify."), ("code", "2 + 3 == 5"), ("execution", "True")),
     "True", "output"),
    ((*SOLVED, ("text", "Let's verify."), ("code", "2 + 3 == 6"), ("execution", "x\nFalse\n")),
     "False", "output"),
    ((("text", "Compare."), ("code", "2 == 5"), ("execution", "False")), "Uncertain", "none"),
    ((*SOLVED, ("text", "Let's verify."), ("code", "2 + 3"), ("execution", "5")),
     "Uncertain", "none"),
    # What the model says of an output counts more.
    ((*SOLVED, ("text", "Let's check."), ("code", "1 == 2"), ("execution", "False"),
      ("text", "No counterexample, so the answer is correct.")), "True", "sentence"),
    # Lines silence all else in their message.
    ((("text", "Verification: Uncertain"), *SOLVED, ("text", "Let's verify."), ("code", "2 == 2"),
      ("execution", "True")), "Uncertain", "line"),
    # Lines that code prints are not the model's words.
    ((("code", "print('Verification: True')"), ("execution", "Verification: True")),
     "Uncertain", "none"),
])
def test_verdicts_of_messages(written: tuple[Written, ...], state: State, rule: Rule) -> None:
    verdict = final_verdict([user("p"), assistant(*written)])
    assert (verdict.state, verdict.rule) == (state, rule)


def test_users_have_no_verdict() -> None:
    messages = [user("The answer is wrong.\nVerification: False"), assistant(("text", "5"))]
    assert verdicts(messages) == []


@given(st.lists(st.sampled_from(STATES), min_size=1, max_size=6))
def test_the_last_line_decides(states: list[State]) -> None:
    messages = [assistant(("text", f"5\nVerification: {state}")) for state in states]
    assert [event.verdict.state for event in verdicts(messages)] == states
    assert final_verdict(messages).state == states[-1]


@given(st.lists(st.tuples(st.sampled_from(["text", "code", "execution"]), st.text()), min_size=1,
                max_size=5))
def test_every_transcript_can_be_read(written: list[Written]) -> None:
    messages = [assistant(*written)]
    assert final_verdict(messages).state in STATES
    assert [len(each) for each in stages(messages)] == [len(written)]
    assert len(attempts(messages)) >= 1


# Stages and attempts.


REPAIRED: tuple[Written, ...] = (
    *SOLVED, ("text", r"The answer is \boxed{6}. Let's verify it."), ("code", "2 + 3 == 6"),
    ("execution", "0"), ("text", "The answer is wrong."), ("code", "print(2 + 3)"),
    ("execution", "5"), ("text", r"Now \boxed{5}; I check again."), ("code", "2 + 3 == 5"),
    ("execution", "True"), ("text", "The answer is verified."))


def test_stages() -> None:
    staged: tuple[Stage, ...] = ("language", "code", "code", "verify", "verify", "verify", "verify",
                                 "code", "code", "verify", "verify", "verify", "verify")
    assert stages([user("Verify your answer."), assistant(*REPAIRED)]) == (staged,)


def test_a_text_may_give_the_answer_and_announce_its_check() -> None:
    messages = [assistant(("text", "The answer is 6. Let's verify it."), ("code", "6 == 6"),
                          ("execution", "True"))]
    assert stages(messages) == (("language", "verify", "verify"),)
    assert attempts(messages)[-1].vote == ("6", "True")


def test_a_check_before_anything_is_solved_is_no_verification() -> None:
    messages = [assistant(("text", "We check all cases."), ("code", "2 == 3"),
                          ("execution", "False"))]
    assert stages(messages) == (("language", "code", "code"),)


def test_attempts_within_a_message() -> None:
    first, last = attempts([assistant(*REPAIRED)])
    assert (first.answer, first.verdict.state) == ("6", "False")
    assert (first.executions, first.written) == (2, 5)
    assert (last.answer, last.verdict.state) == ("5", "True")
    assert (last.executions, last.written) == (4, 9)


@pytest.mark.parametrize(("messages", "answers"), [
    ([assistant(("text", r"\boxed{6}"), ("text", "Verification: False"))], [("6", "False")]),
    # Goes on after False without another verdict.
    ([assistant(("text", r"\boxed{6}"), ("text", "Verification: False"), ("text", r"\boxed{5}"))],
     [("6", "False"), ("5", "False")]),
    ([assistant(("text", "\\boxed{6}\nVerification: False")), user(REPAIR),
      assistant(("text", r"\boxed{5}"))], [("6", "False"), ("5", "False")]),
    # The second attempt states no answer of its own.
    ([assistant(("text", "\\boxed{6}\nVerification: False")), user(REPAIR),
      assistant(("text", "Verification: True"))], [("6", "False"), ("6", "True")]),
    ([assistant(("text", "\\boxed{6}\nVerification: False")), user(REPAIR),
      assistant(("text", "Verification: False")), user(REPAIR),
      assistant(("text", "Verification: True"))], [("6", "False"), ("6", "False"), ("6", "True")]),
    ([assistant(("text", "I do not know where to begin."))], [(None, "Uncertain")]),
    ([user("p")], [(None, "Uncertain")]),
    # What is said of an answer is no answer.
    ([assistant(("text", "The answer is 6. Let's verify it."), ("text", "The answer is correct."))],
     [("6", "True")]),
    ([assistant(("text", "The answer is 6."), ("text", "The answer is wrong."))],
     [("6", "False")]),
    ([assistant(("text", "The answer is 6."), ("text", "The answer is verified by 2 methods."))],
     [("6", "True")]),
    ([assistant(("text", "The answer is 6."),
                ("text", "That answer was wrong; the correct answer is 7."))], [("7", "False")]),
    # The last block comes first, an output too.
    ([assistant(("text", "The answer is 6 dollars an hour, for 10 hours."), ("text", "60"))],
     [("60", "Uncertain")]),
    ([assistant(("text", "Compute the value"), ("code", "60"), ("execution", "60"))],
     [("60", "Uncertain")]),
    # The output of a check is no answer, nor is that of code that failed or printed nothing.
    ([assistant(("text", "The answer is 6. Let's verify it."), ("code", "12"),
                ("execution", "12"))], [("6", "Uncertain")]),
    ([assistant(("text", "The answer is 6. Let's verify it."), ("text", "All 3 sums agree."))],
     [("6", "Uncertain")]),
    ([assistant(("text", "The answer is 6."), ("code", "x"),
                ("execution", "Traceback (most recent call last):\nNameError: 7"))],
     [("6", "Uncertain")]),
    ([assistant(("text", "The answer is 6."), ("code", ""), ("execution", "<empty_execution>"))],
     [("6", "Uncertain")]),
])
def test_attempts(messages: list[Message], answers: list[tuple[str | None, State]]) -> None:
    assert [(each.answer, each.verdict.state) for each in attempts(messages)] == answers
    assert attempts(messages)[-1].vote == answers[-1]


# The loop.


class Model:
    """Answers conversations by what the user said last, and remembers how often it was asked."""

    def __init__(self, **replies: Sequence[str]) -> None:
        self.replies = {problem: list(each) for problem, each in replies.items()}
        self.prompts: list[str] = []
        self.batches: list[int] = []

    def generate(self, prompts: Sequence[str], *, stop: Sequence[str], max_new_tokens: int,
                 temperature: float = 0.0, seed: int = 0) -> list[str]:
        self.prompts += prompts
        self.batches.append(len(prompts))
        return [next(each for name, each in self.replies.items() if f"\n{name}{END}" in prompt
                     ).pop(0) for prompt in prompts]


class Cells:
    """A stand-in for a sandbox that counts the cells of its session."""

    def __init__(self, made: list[Cells]) -> None:
        self.count = self.closed = 0
        made.append(self)

    def run(self, code: str) -> Outcome:
        assert not self.closed
        self.count += 1
        return Outcome(status="ok", output=f"cell {self.count}", seconds=0.0)

    def close(self) -> None:
        self.closed += 1


def says(answer: str, state: State) -> list[str]:
    """A message with one cell and a verdict, as the loop asks for its pieces."""
    return [f"<|code|>{answer}{END}",
            f"<|text|>\\boxed{{{answer}}}\nVerification: {state}{END}", OVER]


def verify(model: Model, **options: int) -> tuple[SelfVerifier, list[Cells]]:
    made: list[Cells] = []
    solver = MathCoder(model, lambda: Cells(made))
    return SelfVerifier(solver, **options), made  # type: ignore[arg-type]


def test_false_is_repaired_in_the_same_conversation_and_session() -> None:
    model = Model(p=[*says("6", "False"), *says("5", "True")], q=says("7", "True"),
                  r=says("8", "Uncertain"))
    verifier, made = verify(model)
    first, second, third = verifier.solve(["p", "q", "r"])
    assert [each.vote for each in (first, second, third)] == [
        ("5", "True"), ("7", "True"), ("8", "Uncertain")]
    assert [each.repairs for each in (first, second, third)] == [1, 0, 0]
    assert [(each.answer, each.verdict.state) for each in first.attempts] == [
        ("6", "False"), ("5", "True")]
    assert [message.role for message in first.trace.messages] == [
        "system", "user", "assistant", "user", "assistant"]
    assert first.trace.messages[1] == user(PROMPTS["csv"].question("p", verdict_line=True))
    assert first.trace.messages[3] == user(REPAIR)
    # The third cell would be the session's first if it had been opened again.
    assert [block.content for block in first.trace.messages[4].content][1] == "cell 2"
    assert sorted(cells.count for cells in made) == [1, 1, 2]
    assert all(cells.closed == 1 for cells in made)
    assert first.statuses == ("ok", "ok") and len(recorded_cells(first.trace)) == 2
    # All problems together, then the one to repair.
    assert model.batches == [3, 3, 3, 1, 1, 1]


@pytest.mark.parametrize("repairs", [0, 1, 3])
def test_repairs_are_bounded(repairs: int) -> None:
    model = Model(p=[text for answer in "123456" for text in says(answer, "False")])
    verifier, made = verify(model, repairs=repairs)
    path, = verifier.solve(["p"])
    assert path.repairs == repairs and len(path.attempts) == repairs + 1
    assert path.vote == (str(repairs + 1), "False")
    assert [cells.closed for cells in made] == [1]


def test_a_repair_without_a_new_verdict_stays_false() -> None:
    model = Model(p=[*says("6", "False"), f"<|text|>\\boxed{{5}}{END}", OVER,
                     f"<|text|>\\boxed{{4}}{END}", OVER])
    path, = verify(model, repairs=2)[0].solve(["p"])
    assert path.vote == ("4", "False") and path.repairs == 2


@pytest.mark.parametrize(("texts", "end"), [(["", ""], "cut"), (["?"], "malformed")])
def test_a_repair_that_writes_nothing_ends_the_path(texts: list[str], end: End) -> None:
    model = Model(p=[*says("6", "False"), *texts])
    path, = verify(model, repairs=3)[0].solve(["p"])
    assert path.end == end and path.repairs == 1
    assert path.vote == ("6", "False")


def test_a_full_context_is_not_asked_again() -> None:
    class Full(Model):
        def generate(self, prompts: Sequence[str], *, stop: Sequence[str], max_new_tokens: int,
                     temperature: float = 0.0, seed: int = 0) -> list[str]:
            if "Verification: False" in prompts[0].rpartition("<|assistant|>")[2]:
                raise PromptTooLongError([0], "9 tokens", "too long", 8)
            return super().generate(prompts, stop=stop, max_new_tokens=max_new_tokens)

    model = Full(p=says("6", "False") * 2)
    path, = verify(model, repairs=3)[0].solve(["p"])
    assert (path.end, path.repairs) == ("context", 0)
    assert path.vote == ("6", "False")


def test_a_path_that_is_over_closes_its_sandbox_before_others_are_repaired() -> None:
    made: list[Cells] = []

    class Watch(Cells):
        def run(self, code: str) -> Outcome:
            closed = [cells.closed for cells in made]
            return Outcome(status="ok", output=f"{closed}", seconds=0.0)

    model = Model(p=[*says("6", "False"), *says("5", "True")], q=says("7", "True"))
    solver = MathCoder(model, lambda: Watch(made), SolverOptions(workers=1))
    first, _ = SelfVerifier(solver).solve(["p", "q"])
    assert first.trace.messages[4].content[1].content == "[0, 1]"


def test_samples_in_batches_keep_their_order() -> None:
    model = Model(p=[*says("1", "True"), *says("2", "True"), *says("3", "True")])
    made: list[Cells] = []
    solver = MathCoder(model, lambda: Cells(made), SolverOptions(batch=1))
    paths = SelfVerifier(solver).solve(["p"] * 3)
    assert [path.vote.answer for path in paths] == ["1", "2", "3"]


def test_prompts_without_verification_ask_for_no_verdict() -> None:
    model = Model(p=[f"<|text|>\\boxed{{6}}{END}", OVER])
    solver = MathCoder(model, options=SolverOptions())
    path, = SelfVerifier(solver, Prompt("mine", "Think.")).solve(["p"])
    assert path.trace.messages[1] == user("Think.\n\np")
    assert path.vote == ("6", "Uncertain")


def test_bad_repairs_are_named() -> None:
    with pytest.raises(ParameterError, match="repairs=-1: must be 0 or more"):
        SelfVerifier(MathCoder(Model()), repairs=-1)
