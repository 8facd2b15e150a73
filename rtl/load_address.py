"""The requesting side of the load unit: loops, then a pipeline of addresses."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from rtl.architecture import Architecture
from rtl.load_decode import JOB, MARK
from rtl.read_dma import WORD_ADDRESS

__all__ = ["LoadAddress"]

_IMAGE_BITS = 17
"""The walk passes from image 65535 on to the next."""

_SIZES = {name: JOB[name].shape for name in ("height", "width")}
_PITCHES = {name: JOB[name].shape for name in ("pitch0", "pitch1", "pitch2", "pitch3")}
_CARRIED: dict[str, object] = {
    "walk": 1, "zero": 1, "mark": MARK, **_SIZES, **_PITCHES, "start": WORD_ADDRESS,
    "index0": _IMAGE_BITS, "index1": 12, "index2": 16, "index3": 12,
}
"""What goes from stage 1 to stage 2 as it is."""

_POINT = data.StructLayout({
    "y_out": 16, "y_tap": signed(17), "x_out": 16, "x_tap": signed(17),
    **{name: JOB[name].shape for name in ("first_y", "first_x")}, **_CARRIED,
})
"""Stage 1: parts of the pixel's coordinates, by place in the output and by tap."""

_PIXEL = data.StructLayout({"y": signed(20), "x": signed(20), **_CARRIED})
"""Stage 2: pixel coordinates."""

_TERMS = data.StructLayout({
    "zero": 1, "mark": MARK, "start": WORD_ADDRESS,
    "term0": unsigned(41), "term1": signed(38), "term2": unsigned(32), "term3": unsigned(28),
})
"""Stage 3: whether it lies outside, and the products of index and pitch."""


class LoadAddress(Component):
    """Word requests of one job after another, one a cycle, without a gap between jobs.

    The first request of a job is valid ``latency`` cycles after the job was taken.

    Members
    -------
    job, job_valid, job_ready: In, In(1), Out(1), :data:`rtl.load_decode.JOB`.
    valid, ready: Out(1), In(1), of the request.
    address: Out(59), word address.
    zero: Out(1), outside the image or beyond the walk: a zero word.
    flush: Out(1), last of the job.
    mark: Out, :data:`rtl.load_decode.MARK`, for the placing side.
    """

    latency = 5
    """Loop counters, then four stages."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        super().__init__(
            {
                "job": In(JOB),
                "job_valid": In(1),
                "job_ready": Out(1),
                "valid": Out(1),
                "ready": In(1),
                "address": Out(WORD_ADDRESS),
                "zero": Out(1),
                "flush": Out(1),
                "mark": Out(MARK),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        advance = Signal()
        m.d.comb += advance.eq(~self.valid | self.ready)
        busy, point = self._loops(m, advance)
        self._pipeline(m, advance, busy, point)
        return m

    def _loops(self, m: Module, advance: Signal) -> tuple[Signal, Signal]:
        """The loop counters; returns whether they stand for a word, and the word's point."""
        job = Signal(JOB, name="current", reset_less=True)
        busy, last, take = Signal(), Signal(), Signal()
        m.d.comb += [
            self.job_ready.eq(~busy | (advance & last)),
            take.eq(self.job_valid & self.job_ready),
        ]
        counters: list[Signal] = []
        ends: list[Signal] = []
        wraps: list[Signal] = []
        for level in range(4):
            limit = job[f"last{level}"]
            counter = Signal(len(limit), name=f"loop{level}", reset_less=True)
            end, wrap = Signal(name=f"end{level}"), Signal(name=f"wrap{level}")
            m.d.comb += [end.eq(counter == limit), wrap.eq(Cat(*ends, end).all())]
            with m.If(take):
                m.d.sync += counter.eq(0)
            with m.Elif(advance & (wraps[-1] if wraps else 1)):
                m.d.sync += counter.eq(Mux(end, 0, counter + 1))
            counters.append(counter)
            ends.append(end)
            wraps.append(wrap)
        left = Signal(len(job.left), reset_less=True)
        m.d.comb += last.eq(Mux(job.lines, left == 0, wraps[3]))
        image, y, x = self._walk(m, job, take, advance, wraps)
        with m.If(take):
            m.d.sync += [busy.eq(1), job.eq(self.job), left.eq(self.job.left)]
        with m.Elif(advance):
            m.d.sync += left.eq(left - 1)
            with m.If(last):
                m.d.sync += busy.eq(0)

        point = Signal(_POINT)
        m.d.comb += [
            point.y_out.eq(y * job.stride_y),
            point.y_tap.eq(counters[3][:8] * job.step_y),
            point.x_out.eq(x * job.stride_x),
            point.x_tap.eq(counters[2] * job.step_x),
            point.zero.eq(job.walk & job.turn & (counters[0] >= job.count)),
            point.mark.eq(Cat(job.turn, *wraps[:3], last)),
            point.index0.eq(
                Mux(job.walk, image, Mux(job.across, counters[0], counters[3]))
            ),
            point.index1.eq(Mux(job.lines, counters[1], counters[2])),
            point.index2.eq(counters[1]),
            point.index3.eq(
                Mux(job.across, 0, Mux(job.walk & job.turn, counters[1], counters[0]))
            ),
        ]
        m.d.comb += [
            point[name].eq(job[name])
            for name in ("first_y", "first_x", "walk", "start", *_SIZES, *_PITCHES)
        ]
        return busy, point

    def _walk(
        self, m: Module, job: Signal, take: Signal, advance: Signal, wraps: list[Signal]
    ) -> tuple[Signal, Signal, Signal]:
        """Place of the output pixel: its image, row and column."""
        image = Signal(_IMAGE_BITS, reset_less=True)
        y, x = Signal(len(job.y), reset_less=True), Signal(len(job.x), reset_less=True)
        step, restart = Signal(), Signal()
        m.d.comb += [
            step.eq(job.turn | wraps[0]),
            restart.eq(Mux(job.turn, wraps[0], wraps[1])),
        ]
        with m.If(take):
            m.d.sync += [image.eq(self.job.image), y.eq(self.job.y), x.eq(self.job.x)]
        with m.Elif(advance & restart):
            m.d.sync += [image.eq(job.image), y.eq(job.y), x.eq(job.x)]
        with m.Elif(advance & step):
            m.d.sync += x.eq(x + 1)
            with m.If(x == job.last_x):
                m.d.sync += [x.eq(0), y.eq(y + 1)]
                with m.If(y == job.last_y):
                    m.d.sync += [y.eq(0), image.eq(image + 1)]
        return image, y, x

    def _pipeline(self, m: Module, advance: Signal, busy: Signal, point: Signal) -> None:
        """Counters to addresses in four stages; all of them stop together."""
        valid1, valid2, valid3 = (Signal(name=f"valid{stage}") for stage in (1, 2, 3))
        point1 = Signal(_POINT, reset_less=True)
        pixel2 = Signal(_PIXEL, reset_less=True)
        terms3 = Signal(_TERMS, reset_less=True)
        outside = Signal()
        index1, index2 = Signal(12), Signal(16)
        m.d.comb += [
            outside.eq(
                (pixel2.y < 0) | (pixel2.y >= pixel2.height)
                | (pixel2.x < 0) | (pixel2.x >= pixel2.width)
            ),
            # Inside, a coordinate is below 4096.
            index1.eq(Mux(pixel2.walk, pixel2.y[:12], pixel2.index1)),
            index2.eq(Mux(pixel2.walk, pixel2.x[:12], pixel2.index2)),
        ]
        with m.If(advance):
            m.d.sync += [
                Cat(valid1, valid2, valid3, self.valid).eq(Cat(busy, valid1, valid2, valid3)),
                point1.eq(point),
                *(pixel2[name].eq(point1[name]) for name in _CARRIED),
                pixel2.y.eq(point1.y_out + point1.y_tap + point1.first_y),
                pixel2.x.eq(point1.x_out + point1.x_tap + point1.first_x),
                terms3.zero.eq(pixel2.zero | (pixel2.walk & outside)),
                terms3.mark.eq(pixel2.mark),
                terms3.start.eq(pixel2.start),
                terms3.term0.eq(pixel2.index0 * pixel2.pitch0),
                terms3.term1.eq(index1 * pixel2.pitch1),
                terms3.term2.eq(index2 * pixel2.pitch2),
                terms3.term3.eq(pixel2.index3 * pixel2.pitch3),
                self.address.eq(
                    terms3.start
                    + ((terms3.term0 + terms3.term1) + (terms3.term2 + terms3.term3))
                ),
                self.zero.eq(terms3.zero),
                self.flush.eq(terms3.mark.last),
                self.mark.eq(terms3.mark),
            ]
