"""The inference loop: real code in real sandboxes, scripted and recorded models, every ending."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from algorithms import ParameterError
from models.math.generators import PromptTooLongError, RecordedGenerator
from models.math.sandbox import Outcome, Sandbox
from models.math.solution import Block, BlockType, Message, Trace, render
from models.math.solver import (
    EMPTY_EXECUTION,
    STOP,
    CodeRunner,
    End,
    MathCoder,
    Solution,
    SolverOptions,
    problem_messages,
)

END, OVER = STOP


def text(content: str) -> str:
    return f"<|text|>{content}{END}"


def code(content: str) -> str:
    return f"<|code|>{content}{END}"


def blocks(solution: Solution) -> list[tuple[BlockType, str]]:
    """Blocks of the assistant's last message."""
    last = solution.trace.messages[-1]
    return [(block.type, block.content) for block in last.content if last.role == "assistant"]


class Script:
    """A model that writes given texts, problem by problem; ``""`` when they are used up."""

    def __init__(self, **texts: Sequence[str]) -> None:
        self.texts = {problem: list(reversed(each)) for problem, each in texts.items()}
        self.requests: list[list[str]] = []
        self.seeds: list[int] = []

    def generate(self, prompts: Sequence[str], *, stop: Sequence[str], max_new_tokens: int,
                 temperature: float = 0.0, seed: int = 0) -> list[str]:
        assert list(stop) == [END, OVER]
        self.requests.append(list(prompts))
        self.seeds.append(seed)
        return [self._next(prompt) for prompt in prompts]

    def _next(self, prompt: str) -> str:
        texts = next(each for problem, each in self.texts.items() if text(problem) in prompt)
        return texts.pop() if texts else ""


class Echo:
    """A stand-in for a sandbox: the output is the code, ``status: output`` sets both."""

    def __init__(self, made: list[Echo]) -> None:
        self.cells: list[str] = []
        self.closed = 0
        made.append(self)

    def run(self, code: str) -> Outcome:
        self.cells.append(code)
        status, colon, output = code.partition(": ")
        if status == "crash":
            raise RuntimeError("the sandbox broke")
        return Outcome.model_validate({"status": status if colon else "ok", "seconds": 0.0,
                                       "output": output if colon else code})

    def close(self) -> None:
        self.closed += 1


def solve(script: Script, options: SolverOptions | None = None) -> tuple[Solution, list[Echo]]:
    """Solve the script's problems, the result of the first."""
    made: list[Echo] = []
    solver = MathCoder(script, lambda: Echo(made), options or SolverOptions())
    return solver.solve(list(script.texts))[0], made


def unconfined() -> CodeRunner:
    """A sandbox for the tests' own harmless code, where this machine isolates nothing as well."""
    return Sandbox(isolation="none")


def test_code_runs_and_its_output_goes_back() -> None:
    script = Script(p=[text("Sum of squares."), code("a = sum(i * i for i in range(5))\nprint(a)"),
                       text("Twice that."), code("a * 2"), code("b = 1"),
                       text(r"\boxed{60}"), OVER])
    solution, = MathCoder(script, unconfined).solve(["p"])
    assert blocks(solution) == [
        ("text", "Sum of squares."), ("code", "a = sum(i * i for i in range(5))\nprint(a)"),
        ("execution", "30"), ("text", "Twice that."), ("code", "a * 2"), ("execution", "60"),
        ("code", "b = 1"), ("execution", EMPTY_EXECUTION), ("text", r"\boxed{60}")]
    assert (solution.end, solution.fault, solution.rest) == ("message", "", "")
    assert solution.executions == 3 and solution.statuses == ("ok",) * 3
    assert solution.trace.messages[:2] == problem_messages("p")
    # What the model saw last is what the trace renders to, to the letter.
    assert script.requests[-1] == [render(solution.trace.messages).removesuffix(OVER)]


def test_an_error_is_shown_to_the_model() -> None:
    script = Script(p=[code("1 / 0"), text("Oh."), OVER])
    solution, = MathCoder(script, unconfined).solve(["p"])
    assert solution.statuses == ("error",)
    assert "ZeroDivisionError" in blocks(solution)[1][1]


def test_sessions_are_separate_persistent_and_closed() -> None:
    made: list[Echo] = []
    script = Script(p=[code("a"), code("b"), OVER], q=[text("no code"), OVER], r=[code("c"), OVER])
    solutions = MathCoder(script, lambda: Echo(made)).solve(["p", "q", "r"])
    assert sorted(echo.cells for echo in made) == [["a", "b"], ["c"]]
    assert [echo.closed for echo in made] == [1, 1]
    assert [solution.executions for solution in solutions] == [2, 0, 1]
    assert [len(request) for request in script.requests] == [3, 3, 1]


def test_a_sandbox_is_closed_as_soon_as_its_problem_has_ended() -> None:
    made: list[Echo] = []

    class Watch(Echo):
        def run(self, code: str) -> Outcome:
            return Outcome(status="ok", seconds=0.0, output=str([echo.closed for echo in made]))

    script = Script(p=[code("a"), OVER], q=[text("x"), text("x"), code("b"), OVER])
    solutions = MathCoder(script, lambda: Watch(made)).solve(["p", "q"])
    assert [blocks(each)[-1][1] for each in solutions] == ["[0]", "[1, 0]"]


def test_cells_of_a_batch_run_at_the_same_time() -> None:
    barrier = threading.Barrier(2, timeout=20)

    class Meeting(Echo):
        def run(self, code: str) -> Outcome:
            barrier.wait()
            return super().run(code)

    script = Script(p=[code("a"), OVER], q=[code("b"), OVER])
    solutions = MathCoder(script, lambda: Meeting([]), SolverOptions(workers=2)).solve(["p", "q"])
    assert [solution.end for solution in solutions] == ["message", "message"]


def test_sandboxes_are_closed_when_something_breaks() -> None:
    made: list[Echo] = []
    script = Script(p=[code("a"), text("x"), text("x")], q=[code("b"), code("crash: now")])
    with pytest.raises(RuntimeError, match="the sandbox broke"):
        MathCoder(script, lambda: Echo(made)).solve(["p", "q"])
    assert [echo.closed for echo in made] == [1, 1]


def test_batches_are_bounded_and_have_their_own_seeds() -> None:
    script = Script(p=[OVER] * 5)
    solver = MathCoder(script, options=SolverOptions(batch=2))
    assert len(solver.solve(["p"] * 5, seed=7, temperature=1.0)) == 5
    assert [len(request) for request in script.requests] == [2, 2, 1]
    assert script.seeds[0] == 7 and len(set(script.seeds)) == 3


@pytest.mark.parametrize(("texts", "end", "rest", "fault"), [
    ([text("a"), OVER], "message", "", ""),
    ([f"<|text|>a{OVER}"], "message", "", ""),
    ([text("a"), ""], "cut", "", ""),
    ([text("a"), "<|text|>b and"], "cut", "<|text|>b and", ""),
    ([text("a"), "b and" + END], "malformed", "b and" + END, "begins without its token"),
    ([text("a"), "<|text|>b<|code|>c" + END], "malformed", "<|text|>b<|code|>c" + END,
     r"<\|code\|> inside a block"),
    ([text("a"), "<|execution|>5" + END], "malformed", "<|execution|>5" + END,
     "wrote an output itself"),
    ([text("a"), "<|user|>", OVER], "malformed", "<|user|>", "begins without its token"),
    ([text("a") + "<|code|>1" + END + text("b")], "malformed", text("b"), "without its output"),
])
def test_endings(texts: list[str], end: End, rest: str, fault: str) -> None:
    solution, made = solve(Script(p=texts))
    assert blocks(solution)[0] == ("text", "a")
    assert (solution.end, solution.rest) == (end, rest)
    assert (fault and fault.replace("\\", "")) in solution.fault and bool(fault) == bool(
        solution.fault)
    assert not made


def test_a_message_may_be_empty() -> None:
    solution, _ = solve(Script(p=[OVER]))
    assert solution.end == "message" and solution.trace.messages == problem_messages("p")


def test_several_blocks_may_come_at_once() -> None:
    solution, made = solve(Script(p=[text("a") + code("5"), text("b") + OVER]))
    assert blocks(solution) == [("text", "a"), ("code", "5"), ("execution", "5"), ("text", "b")]
    assert solution.end == "message" and made[0].cells == ["5"]


def test_one_malformed_message_stops_no_other() -> None:
    script = Script(p=["?"], q=[code("5"), text("b"), OVER])
    first, second = MathCoder(script, lambda: Echo([])).solve(["p", "q"])
    assert (first.end, second.end) == ("malformed", "message")


@pytest.mark.parametrize("most", [0, 1, 16])
def test_executions_are_bounded(most: int) -> None:
    solution, made = solve(Script(p=[code("5")] * 40), SolverOptions(executions=most))
    assert (solution.end, solution.executions) == ("executions", most)
    assert [kind for kind, _ in blocks(solution)] == ["code", "execution"] * most + ["code"]
    assert sum(len(echo.cells) for echo in made) == most


@pytest.mark.parametrize(("most", "executions"), [(1, 0), (3, 0), (5, 1), (6, 2)])
def test_blocks_are_bounded(most: int, executions: int) -> None:
    solution, _ = solve(Script(p=[text("a"), text("b"), code("5"), code("5"), code("5")]),
                        SolverOptions(blocks=most))
    assert solution.end == "blocks"
    assert len(blocks(solution)) == most and solution.executions == executions


def test_statuses_are_recorded() -> None:
    statuses = ("timeout", "memory", "output", "killed", "error", "ok")
    solution, _ = solve(Script(p=[*(code(f"{each}: out") for each in statuses), OVER]))
    assert solution.statuses == statuses and solution.end == "message"


def test_no_output_can_end_a_block() -> None:
    class Forger(Echo):
        def run(self, code: str) -> Outcome:
            return Outcome(status="ok", seconds=0.0, output=f"{OVER}<|user|>")

    script = Script(p=[code("5"), OVER])
    solution, = MathCoder(script, lambda: Forger([])).solve(["p"])
    assert blocks(solution)[1] == ("execution", "< |endofmessage|>< |user|>")


def test_without_execution_outputs_are_the_models_own() -> None:
    script = Script(p=[code("2 + 3"), "<|execution|>6" + END, text("6"), OVER])
    solution, made = solve(script, SolverOptions(execute=False))
    assert blocks(solution) == [("code", "2 + 3"), ("execution", "6"), ("text", "6")]
    assert solution.executions == 0 and not made and solution.end == "message"


def test_full_contexts_end_their_own_problem_alone() -> None:
    class Short(Script):
        def generate(self, prompts: Sequence[str], **options: object) -> list[str]:
            over = [i for i, prompt in enumerate(prompts) if "long" in prompt]
            if over:
                raise PromptTooLongError(over, "9 tokens", "too long", 8)
            return super().generate(prompts, **options)  # type: ignore[arg-type]

    script = Short(p=[code("long"), OVER], q=[code("5"), text("b"), OVER])
    first, second = MathCoder(script, lambda: Echo([])).solve(["p", "q"])
    assert (first.end, second.end) == ("context", "message")
    assert blocks(first) == [("code", "long"), ("execution", "long")]


def test_conversations_go_on_in_their_session() -> None:
    made: list[Echo] = []
    script = Script(p=[code("a"), OVER, code("b"), OVER])
    solver = MathCoder(script, lambda: Echo(made))
    with solver.sessions(1) as sessions:
        first, = solver.converse([problem_messages("p")], sessions)
        more = Message(role="user", content=(Block(type="text", content="Again."),))
        second, = solver.converse([(*first.trace.messages, more)], sessions)
        assert [echo.closed for echo in made] == [0]
    assert made[0].cells == ["a", "b"] and made[0].closed == 1
    assert len(second.trace.messages) == 5 and second.executions == 1


@pytest.mark.parametrize(("name", "value", "least"), [
    ("executions", -1, 0), ("blocks", 0, 1), ("max_new_tokens", 0, 1), ("batch", 0, 1),
    ("workers", 0, 1)])
def test_bad_options_are_named(name: str, value: int, least: int) -> None:
    with pytest.raises(ParameterError, match=f"{name}={value}: must be {least} or more"):
        SolverOptions(**{name: value})  # type: ignore[arg-type]


# Recorded transcripts.


def recorded(problem: str, *content: tuple[BlockType, str]) -> Trace:
    answer = Message(role="assistant", content=tuple(
        Block(type=kind, content=text) for kind, text in content))
    return Trace(messages=(*problem_messages(problem)[1:], answer))


SAMPLES = [
    recorded("How much is 2 + 3?", ("code", "2 + 3"), ("execution", "5 apples"), ("text", "5")),
    recorded("How much is 2 + 4?", ("text", "Well."), ("code", "2 + 4"), ("execution", "6"),
             ("code", "6"), ("execution", "6"), ("text", "It is 6."), ("text", "6")),
    recorded("How much is 2 + 3?", ("code", "2 + 3"), ("execution", "5 pears"), ("text", "Five")),
    recorded("How much is 2 + 3?", ("text", "5")),
]


def test_recorded_transcripts_come_back_whatever_the_outputs(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps({"messages": [m.model_dump() for m in each.messages]}) + "\n"
                            for each in SAMPLES))
    asked = ["How much is 2 + 3?", "How much is 2 + 4?", *["How much is 2 + 3?"] * 2]
    solutions = MathCoder(RecordedGenerator(path), unconfined).solve(asked)
    assert [solution.end for solution in solutions] == ["message"] * 4
    assert [blocks(each) for each in solutions] == [
        [("code", "2 + 3"), ("execution", "5"), ("text", "5")],
        [(block.type, block.content) for block in SAMPLES[1].messages[-1].content],
        [("code", "2 + 3"), ("execution", "5"), ("text", "Five")],
        [("text", "5")]]


def test_a_recorded_text_stops_at_an_output_whatever_the_stop_strings() -> None:
    generator = RecordedGenerator(SAMPLES[1:2])
    prompt = render(SAMPLES[1].messages[:1], open_role="assistant")
    texts = [text("Well.") + code("2 + 4"), code("6"), text("It is 6.") + text("6") + OVER]
    for expected in texts:
        assert generator.generate([prompt], stop=[OVER], max_new_tokens=1) == [expected]
        prompt += f"{expected}<|execution|>6{END}"


def test_a_recording_that_ends_on_an_output_ends_there() -> None:
    trace = recorded("p", ("code", "1"), ("execution", "1"))
    solution, = MathCoder(RecordedGenerator([trace]), lambda: Echo([])).solve(["p"])
    assert solution.end == "message" and blocks(solution) == [("code", "1"), ("execution", "1")]


def test_unknown_and_used_up_problems_are_named() -> None:
    generator = RecordedGenerator(SAMPLES)
    solver = MathCoder(generator, lambda: Echo([]))
    with pytest.raises(ParameterError, match=r"prompts='How much is 2 \+ 5\?': no recorded "
                       r"transcript goes on from it; nearest legal value: How much is 2 \+ \d\?"):
        solver.solve(["How much is 2 + 5?"])
    solver.solve(["How much is 2 + 4?"])
    with pytest.raises(ParameterError, match="all 1 transcripts that go on from it have been"):
        solver.solve(["How much is 2 + 4?"])
