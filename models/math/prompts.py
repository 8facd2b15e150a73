"""The prompts of code-based self-verification (arXiv:2308.07921, figures 2 and 3)."""

from __future__ import annotations

from dataclasses import dataclass

from algorithms import ParameterError, closest

__all__ = ["PROMPTS", "REPAIR", "VERDICT_LINE", "Prompt", "get_prompt", "recognise"]


@dataclass(frozen=True)
class Prompt:
    """How a problem is asked.

    name: what commands call it. instruction: stands before the problem. verifies: whether the model
    is asked to check its answer.
    """

    name: str
    instruction: str
    verifies: bool = False

    def question(self, problem: str, verdict_line: bool = False) -> str:
        """The user's message. With ``verdict_line`` a verdict that programs can read is asked for;
        it needs a prompt that verifies."""
        if verdict_line and not self.verifies:
            raise ParameterError("verdict_line", True, f"prompt {self.name} verifies nothing",
                                 False)
        asked = f"{self.instruction} {VERDICT_LINE}" if verdict_line else self.instruction
        return f"{asked}\n\n{problem}" if asked else problem


VERDICT_LINE = ("End with a line of its own: `Verification: True` if your check agrees with the "
                "answer, `Verification: False` if it does not, `Verification: Uncertain` if there "
                "is no effective way to check it.")

REPAIR = ("The check shows that this answer is false. Find what went wrong, solve the problem "
          "again with code from there, and check the new answer in the same way.")
"""The user's next message after a verdict False."""

PROMPTS: dict[str, Prompt] = {prompt.name: prompt for prompt in (
    Prompt("basic", ""),
    Prompt("no-code", "You are not allowed to use any code."),
    Prompt("code-once", "You can use code only 1 time."),
    Prompt("csv", "To solve the problem using code interpreter step by step, and please verify "
                  "your answer using code interpreter.", verifies=True),
    Prompt("csv-substeps", "Solve every single step of the problem with the code interpreter, then "
                           "use it to check the answer yourself.", verifies=True),
    Prompt("natural", "Solve the problem with the code interpreter step by step, then check the "
                      "answer by reasoning in words, without code.", verifies=True),
)}
"""``basic`` to ``code-once`` vary how much code is used; ``natural`` verifies without any, the
paper's comparison; ``csv`` is the paper's method and ``csv-substeps`` a variant in other words."""


def get_prompt(name: str) -> Prompt:
    """A prompt by name; :class:`ParameterError` for one that there is not."""
    if name not in PROMPTS:
        raise ParameterError("prompt", name, f"must be one of {', '.join(PROMPTS)}",
                             closest(name, PROMPTS) or "csv")
    return PROMPTS[name]


def recognise(question: str) -> tuple[Prompt, str]:
    """The prompt and the problem that :meth:`Prompt.question` made a message of; ``basic`` for a
    message without an instruction of ours."""
    for prompt in PROMPTS.values():
        if prompt.instruction and question.startswith(prompt.instruction):
            rest = question.removeprefix(prompt.instruction)
            return prompt, rest.removeprefix(f" {VERDICT_LINE}").lstrip("\n")
    return PROMPTS["basic"], question
