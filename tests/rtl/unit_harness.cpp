// Drives one pipelined unit: an operand record goes in every cycle, every cycle's output comes out.
//
//   Vunit stream INPUT OUTPUT FLUSH     records of INPUT, then FLUSH cycles more; OUTPUT gets one
//                                       32-bit word a cycle: what the port shows before the edge
//   Vunit products FROM TO              every pair of finite non-negative binary16, the first one
//                                       in [FROM, TO): compared here; prints pairs and mismatches
//
// A record is one 32-bit word an operand. IN0, IN1 and IN2 (both optional) and OUT name the ports.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "Vunit.h"
#include "verilated.h"

namespace {

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "unit harness: %s\n", what);
    std::exit(3);
}

VerilatedContext context;
Vunit unit{&context};

#if defined(IN2)
constexpr std::size_t kOperands = 3;
#elif defined(IN1)
constexpr std::size_t kOperands = 2;
#else
constexpr std::size_t kOperands = 1;
#endif

void drive(const uint32_t* operands) {
    unit.IN0 = operands[0];
#ifdef IN1
    unit.IN1 = operands[1];
#endif
#ifdef IN2
    unit.IN2 = operands[2];
#endif
}

// One evaluation a clock level: the outputs are registers, so they stand still in between.
void clock() {
    unit.clk = 1;
    unit.eval();
    unit.clk = 0;
    unit.eval();
}

void reset() {
    unit.rst = 1;
    unit.clk = 0;
    constexpr uint32_t kZeros[kOperands] = {};
    drive(kZeros);
    unit.eval();
    clock();
    clock();
    unit.rst = 0;
}

void stream(const char* input, const char* output, long flush) {
    std::FILE* in = std::fopen(input, "rb");
    std::FILE* out = std::fopen(output, "wb");
    if (!in || !out) fail("cannot open the files");
    constexpr std::size_t kChunk = 4096;
    std::vector<uint32_t> records(kChunk * kOperands), results(kChunk);
    while (const std::size_t got = std::fread(records.data(), 4 * kOperands, kChunk, in)) {
        for (std::size_t n = 0; n < got; ++n) {
            drive(&records[n * kOperands]);
            results[n] = unit.OUT;
            clock();
        }
        std::fwrite(results.data(), 4, got, out);
    }
    for (long n = 0; n < flush; ++n) {
        const uint32_t word = unit.OUT;
        std::fwrite(&word, 4, 1, out);
        clock();
    }
    std::fclose(in);
    if (std::fclose(out)) fail("cannot write the output");
}

// Exact, and independent of the unit: the C library scales an integer.
float value(uint32_t half) {
    const int exponent = half >> 10, fraction = half & 0x3ff;
    return exponent ? std::ldexp(float(fraction | 0x400), exponent - 25)
                    : std::ldexp(float(fraction), -24);
}

void products(uint32_t from, uint32_t to) {
    constexpr uint32_t kFinite = 0x7c00;
    std::vector<float> table(kFinite);
    for (uint32_t half = 0; half < kFinite; ++half) table[half] = value(half);
    uint64_t pairs = 0, mismatches = 0;
    std::vector<uint32_t> expected(LATENCY);
    for (uint64_t n = 0, total = uint64_t(to - from) * kFinite; n < total + LATENCY; ++n) {
        const std::size_t slot = n % LATENCY;
        if (n >= LATENCY) {
            ++pairs;
            mismatches += unit.OUT != expected[slot];
        }
        const uint32_t pair[] = {from + uint32_t(n / kFinite), uint32_t(n % kFinite), 0};
        const float product = n < total ? table[pair[0]] * table[pair[1]] : 0.0f;
        std::memcpy(&expected[slot], &product, 4);
        drive(pair);
        clock();
    }
    std::printf("%llu %llu\n", (unsigned long long)pairs, (unsigned long long)mismatches);
}

}  // namespace

int main(int argc, char** argv) {
    reset();
    if (argc == 5 && !std::strcmp(argv[1], "stream"))
        stream(argv[2], argv[3], std::strtol(argv[4], nullptr, 0));
    else if (argc == 4 && !std::strcmp(argv[1], "products"))
        products(std::strtoul(argv[2], nullptr, 0), std::strtoul(argv[3], nullptr, 0));
    else
        fail("usage: stream INPUT OUTPUT FLUSH | products FROM TO");
    unit.final();
    return 0;
}
