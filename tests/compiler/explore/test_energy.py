"""The energy model: units, additivity, a sum by hand, and magnitudes that a card could draw."""

from __future__ import annotations

from dataclasses import astuple, fields, replace

import pytest

from compiler.explore.energy import Counts, Energy, EnergyModel, estimate
from rtl.architecture import PRESETS
from rtl.chunk import LANES, WORD_BYTES

ROUND = EnergyModel(mac_pj=10, buffer_word_pj=20, dram_byte_pj=100, vector_op_pj=50, static_w=5)
RUN = Counts(macs=4e9, buffer_words=1e9, dram_bytes=2e8, vector_ops=1e8, cycles=2e6, clock_mhz=200)
BUSY = ("macs", "buffer_words", "dram_bytes", "vector_ops")


def test_a_run_by_hand() -> None:
    found = estimate(RUN, ROUND)
    # 4e9 x 10 pJ, 1e9 x 20 pJ, 2e8 x 100 pJ, 1e8 x 50 pJ, 5 W for 2e6 cycles of 5 ns.
    assert found.components == pytest.approx(
        {"mac": 0.04, "buffer": 0.02, "dram": 0.02, "vector": 0.005, "static": 0.05})
    assert found.seconds == pytest.approx(0.01)
    assert found.total == pytest.approx(0.135)
    assert found.watts == pytest.approx(
        {"mac": 4, "buffer": 2, "dram": 2, "vector": 0.5, "static": 5})
    assert found.total_watts == pytest.approx(13.5)


def test_every_count_and_constant_prices_its_own_component() -> None:
    base = estimate(RUN, ROUND).components
    constants = ("mac_pj", "buffer_word_pj", "dram_byte_pj", "vector_op_pj", "static_w")
    assert constants == tuple(field.name for field in fields(EnergyModel))
    for name, constant in zip(base, constants, strict=True):
        dearer = estimate(RUN, replace(ROUND, **{constant: 2 * getattr(ROUND, constant)}))
        assert dearer.components == pytest.approx({**base, name: 2 * base[name]})
    for name, count in zip(base, BUSY, strict=False):
        more = estimate(replace(RUN, **{count: 2 * getattr(RUN, count)}), ROUND)
        assert more.components == pytest.approx({**base, name: 2 * base[name]})


def test_time_costs_static_energy_only() -> None:
    once, slow = estimate(RUN), estimate(replace(RUN, clock_mhz=100))
    assert slow.seconds == pytest.approx(2 * once.seconds)
    assert slow.static == pytest.approx(2 * once.static)
    assert slow.mac == once.mac
    assert slow.total_watts < once.total_watts
    assert slow.total > once.total


def test_runs_add_up() -> None:
    other = Counts(macs=1, buffer_words=2, dram_bytes=3, vector_ops=4, cycles=500, clock_mhz=200)
    summed = {name: getattr(RUN, name) + getattr(other, name) for name in (*BUSY, "cycles")}
    both = replace(RUN, **summed)
    added, whole = estimate(RUN) + estimate(other), estimate(both)
    assert isinstance(added, Energy)
    assert astuple(added) == pytest.approx(astuple(whole))
    assert added.total == pytest.approx(sum(added.components.values()))


def test_scaling_a_run_leaves_its_power() -> None:
    longer = replace(RUN, **{name: 7 * getattr(RUN, name) for name in (*BUSY, "cycles")})
    assert estimate(longer).total == pytest.approx(7 * estimate(RUN).total)
    assert estimate(longer).watts == pytest.approx(estimate(RUN).watts)


def test_the_paper_sized_chip_draws_what_a_card_can() -> None:
    """32 x 32 at 200 MHz, all parts busy: tens of watts, most of them in the array."""
    machine = PRESETS["paper"]
    cycles = 1e6
    dram = 76.8e9 / 200e6  # four channels, bytes a cycle
    busy = estimate(Counts(
        macs=machine.pes * cycles,
        # A word a row, 20 bits of weight a column.
        buffer_words=(machine.rows + machine.cols * 2.5 / WORD_BYTES) * cycles,
        dram_bytes=dram * cycles, vector_ops=LANES * cycles,
        cycles=cycles, clock_mhz=machine.clock_mhz,
    ))
    assert 10 < busy.total_watts < 60
    assert max(busy.watts, key=busy.watts.__getitem__) in ("mac", "dram")
    idle = estimate(Counts(0, 0, 0, 0, cycles, machine.clock_mhz))
    assert idle.total == idle.static
    assert idle.total_watts == pytest.approx(EnergyModel().static_w)


def test_constants_are_ordered_as_physics_orders_them() -> None:
    """A byte of DRAM costs more than one of block RAM, an FP32 result more than an FP16 MAC."""
    model = EnergyModel()
    assert model.dram_byte_pj > 10 * model.buffer_word_pj / WORD_BYTES
    assert model.mac_pj < model.vector_op_pj < 2 * model.mac_pj
    assert 9 < model.mac_pj < 170  # bounds in the comment of the model
