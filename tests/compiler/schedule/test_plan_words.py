"""program.bin: what was scheduled comes back from its words, and what is no program is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_scheduler import TARGET, a_step

from compiler.chip.optimisers import Sgd
from compiler.ir import Gemm, Update
from compiler.schedule.memory_map import memory_map
from compiler.schedule.plan_words import (
    END,
    GEMM,
    HOST,
    PLAN_BYTES,
    UPDATE,
    WORDS,
    PlanWord,
    WordKind,
    decode_plan,
    encode_plan,
    plan_text,
    tiling_of,
)
from compiler.schedule.scheduler import schedule
from rtl.errors import ParameterError


def a_program() -> bytes:
    step = a_step()
    return encode_plan(schedule(TARGET, step), memory_map(step, Sgd(0.1)))


def test_every_task_has_its_word_and_every_tiling_comes_back() -> None:
    step = a_step()
    made = schedule(TARGET, step)
    words = decode_plan(encode_plan(made, memory_map(step, Sgd(0.1))))
    assert words[0]["words"] == len(words) - 2
    gemms = [word for word in words if word.kind is GEMM]
    tilings = [placed.mapped.tiling for placed in made.gemms if placed.mapped]
    assert [tiling_of(word, TARGET) for word in gemms] == tilings
    assert sum(word.kind is HOST for word in words) == 6
    updates = [placed.task for placed in made.placed if isinstance(placed.task, Update)]
    assert [word["elements"] for word in words if word.kind is UPDATE] == [
        update.elements for update in updates]


def test_operands_have_the_addresses_of_the_memory_map() -> None:
    step = a_step()
    memory = memory_map(step, Sgd(0.1))
    made = schedule(TARGET, step)
    words = [word for word in decode_plan(encode_plan(made, memory)) if word.kind is GEMM]
    for placed, word in zip(made.gemms, words, strict=True):
        gemm = placed.task
        assert isinstance(gemm, Gemm)
        if gemm.stage == "WU":
            assert word["c"] * 32 == memory.start_of(f"grad({gemm.weight})")
        else:
            assert word["b"] * 32 == memory.start_of(f"{gemm.weight} packed {gemm.stage}")


@given(st.sampled_from(WORDS), st.data())
def test_a_word_decodes_to_what_was_encoded(kind: WordKind, data: st.DataObject) -> None:
    values = {field.name: data.draw(st.integers(field.low, field.top), field.name)
              for field in kind.fields}
    word = PlanWord(kind, values)
    begin = decode_plan(a_program())[0]
    raw = begin.encode() + word.encode() + PlanWord(END, {}).encode()
    assert decode_plan(raw)[1] == word
    assert len(word.encode()) == PLAN_BYTES


def test_a_program_reads_as_text_one_word_a_line() -> None:
    lines = plan_text(a_program()).splitlines()
    assert lines[0].startswith("begin version=1 rows=8 cols=8 interleave=4")
    assert lines[-1] == "end"
    assert any(line.startswith("gemm layer=") for line in lines)


def test_the_same_schedule_gives_the_same_bytes() -> None:
    assert a_program() == a_program()


@pytest.mark.parametrize(("change", "message"), [
    (lambda raw: raw[:-1], r"program\.bin=\d+: must be a multiple of 64 bytes"),
    (lambda raw: b"", r"program\.bin=0: must be a multiple of 64 bytes"),
    (lambda raw: raw[:64] + b"\x99" + raw[65:], r"program\.bin=153: word 1 has an unknown opcode"),
    (lambda raw: raw[64:], r"program\.bin='\w+': must go from begin to end"),
    (lambda raw: raw[:1] + b"\x07" + raw[2:], r"program\.bin=7: is not the version of this "),
    (lambda raw: raw[:127] + b"\x80" + raw[128:], r"program\.bin=1: word has bits set above"),
])
def test_what_is_no_program_is_refused(change: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        decode_plan(change(a_program()))


def test_a_value_outside_its_field_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"interleave_rows=9: must be 1 to 7"):
        PlanWord(GEMM, {"interleave_rows": 9}).encode()
