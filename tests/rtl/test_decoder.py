"""The decoder against :func:`rtl.isa.decode`: every opcode, every bound, random words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from amaranth.sim import Simulator

from rtl.decoder import Decoder
from rtl.instruction import HEADER, WORD_BITS, Instruction
from rtl.isa import INSTRUCTIONS, IllegalWord, decode
from rtl.registers import ErrorCode


def expected(word: int) -> tuple[ErrorCode, int | None]:
    """What the decoder must say, by the words of the exception."""
    try:
        return ErrorCode.NONE, int(decode(word).instruction.unit)
    except IllegalWord as illegal:
        for text, code in (("undefined", ErrorCode.OPCODE), ("bits above", ErrorCode.RESERVED),
                           ("is not", ErrorCode.FIELD)):
            if text in illegal.reason:
                return code, None
        raise


def random_bits(rng: np.random.Generator, width: int = WORD_BITS) -> int:
    return int.from_bytes(rng.bytes(-(-width // 8)), "little") & ((1 << width) - 1)


def around(instruction: Instruction) -> Iterator[int]:
    """Words with one field at and beyond each of its bounds, and with one reserved bit set."""
    plain, offset = instruction.encode(), 0
    for field in instruction.all_fields:
        mask = (1 << field.width) - 1
        if field not in HEADER[:1]:
            for value in (field.low - 1, field.low, field.top, field.top + 1, 0, mask):
                yield plain & ~(mask << offset) | (value & mask) << offset
        offset += field.width
    for bit in range(instruction.width, WORD_BITS):
        yield plain | 1 << bit


def test_against_software(rng: np.random.Generator) -> None:
    words = [word for instruction in INSTRUCTIONS for word in around(instruction)]
    words += [random_bits(rng, 248) << 8 | opcode for opcode in range(256)] + list(range(256))
    for instruction in INSTRUCTIONS:
        words += [random_bits(rng, instruction.width) & ~0xFF | instruction.opcode
                  for _ in range(40)]
    decoder = Decoder()
    verdicts: Counter[ErrorCode] = Counter()

    async def bench(ctx: Any) -> None:
        for word in words:
            ctx.set(decoder.word, word)
            code, unit = expected(word)
            assert ErrorCode(ctx.get(decoder.error)) == code, hex(word)
            assert unit is None or ctx.get(decoder.unit) == unit
            verdicts[code] += 1

    simulator = Simulator(decoder)
    simulator.add_testbench(bench)
    simulator.run()
    assert sum(verdicts.values()) == len(words) > 1500
    assert min(verdicts.values()) > 20 and len(verdicts) == 4
