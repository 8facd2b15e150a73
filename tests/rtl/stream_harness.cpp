// Drives a unit that takes 256-bit words and gives them on one or two streams.
//
//   Vunit INPUT OUTPUT SEED STALL_IN STALL_A STALL_B WORDS_A WORDS_B
//
// An input record is the word's eight 32-bit parts and n | m_log2 << 8. The run ends a while after
// streams A and B have given WORDS_A and WORDS_B: a word too many is an error, as is a stream that
// breaks the valid/ready rules. An output record is the stream (0, 1), the cycle counted from that
// of the first record accepted, last, and the word's parts. STALL_* in 256ths is how often a pause
// of random length begins; with 256 more, ready waits for valid; with 512, it never comes.
//
// A_WORD, A_VALID, A_READY and A_LAST (optional) name the ports of stream A, those with B of stream
// B (optional). PATTERN: there are n and m_log2. FREE: no handshakes, port A_WORD has PARTS parts
// in every cycle, and LATENCY cycles follow the last record.

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "Vunit.h"
#include "verilated.h"

namespace {

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "stream harness: %s\n", what);
    std::exit(3);
}

constexpr std::size_t kParts = 8;
using Record = std::array<uint32_t, kParts + 1>;

VerilatedContext context;
Vunit unit{&context};
std::mt19937 random_bits;

void tick() {
    unit.clk = 1;
    unit.eval();
    unit.clk = 0;
    unit.eval();
}

void drive(const Record& record) {
    for (std::size_t part = 0; part < kParts; ++part) unit.word[part] = record[part];
#ifdef PATTERN
    unit.n = record[kParts] & 0xff;
    unit.m_log2 = record[kParts] >> 8;
#endif
}

std::vector<Record> read_all(const char* path) {
    std::FILE* in = std::fopen(path, "rb");
    if (!in) fail("cannot open the input");
    std::vector<Record> records;
    Record record;
    while (std::fread(record.data(), sizeof record, 1, in)) records.push_back(record);
    std::fclose(in);
    return records;
}

#ifdef FREE

void run(const std::vector<Record>& records, std::FILE* out, char**) {
    for (std::size_t n = 0; n < records.size() + LATENCY; ++n) {
        drive(n < records.size() ? records[n] : Record{});
        unit.eval();
        std::fwrite(&unit.A_WORD[0], 4, PARTS, out);
        tick();
    }
}

#else

#ifdef A_LAST
#define LAST_OF_A unit.A_LAST
#else
#define LAST_OF_A false
#endif

// Pauses: whether to go on in this cycle.
struct Pace {
    unsigned stall;
    unsigned left = 0;
    bool go(bool valid) {
        if (stall & 512) return false;
        if (left) return --left, false;
        if ((random_bits() & 0xff) >= (stall & 0xff)) return valid || !(stall & 256);
        left = random_bits() % (1u << random_bits() % 7);
        return false;
    }
};

// What a stream shows in this cycle, and whether it kept its word since the one before.
struct Watch {
    uint32_t id;
    Pace pace;
    unsigned expected;
    bool waiting = false;
    Record held{};
    void look(bool valid, bool ready, bool last, const uint32_t* word, uint32_t cycle,
              std::FILE* out) {
        Record now;
        now[0] = last;
        std::memcpy(&now[1], word, 4 * kParts);
        if (waiting && (!valid || now != held)) fail("a word changed while it waited");
        waiting = valid && !ready;
        held = now;
        if (!valid || !ready) return;
        if (!expected--) fail("a word too many");
        const uint32_t head[2] = {id, cycle};
        std::fwrite(head, sizeof head, 1, out);
        std::fwrite(now.data(), sizeof now, 1, out);
    }
};

void run(const std::vector<Record>& records, std::FILE* out, char** argv) {
    const auto number = [&](int n) { return unsigned(std::strtoul(argv[n], nullptr, 0)); };
    random_bits.seed(number(3));
    Pace pace{number(4)};
    Watch a{0, {number(5)}, number(7)}, b{1, {number(6)}, number(8)};
    std::size_t next = 0;
    uint32_t cycle = 0, quiet = 0, flush = 0;
    bool offered = false;
    while (flush < 100) {
        offered = next < records.size() && (offered || pace.go(true));
        drive(offered ? records[next] : Record{});
        unit.valid = offered;
        unit.A_READY = a.pace.go(unit.A_VALID);
#ifdef B_WORD
        unit.B_READY = b.pace.go(unit.B_VALID);
#endif
        unit.eval();
        const bool accepted = offered && unit.ready;
        const std::size_t left = a.expected + b.expected;
        a.look(unit.A_VALID, unit.A_READY, LAST_OF_A, &unit.A_WORD[0], cycle, out);
#ifdef B_WORD
        b.look(unit.B_VALID, unit.B_READY, unit.B_LAST, &unit.B_WORD[0], cycle, out);
#endif
        quiet = accepted || left != a.expected + b.expected ? 0 : quiet + 1;
        if (quiet > 10000) fail("nothing moves any more");
        flush += !a.expected && !b.expected && next == records.size();
        tick();
        cycle += next || accepted;
        if (accepted) ++next, offered = false;
    }
}

#endif

}  // namespace

int main(int argc, char** argv) {
    if (argc != 9) fail("needs eight arguments");
    const std::vector<Record> records = read_all(argv[1]);
    std::FILE* out = std::fopen(argv[2], "wb");
    if (!out) fail("cannot open the output");
    unit.rst = 1;
    unit.clk = 0;
    unit.eval();
    tick();
    tick();
    unit.rst = 0;
    run(records, out, argv);
    if (std::fclose(out)) fail("cannot write the output");
}
