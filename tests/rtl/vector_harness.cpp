// Plays a script on the vector engine.
//
//   Vvector SCRIPT OUTPUT SEED
//
// A script is a sequence of 32-bit words: a command and its arguments.
//
//   0 values[16]              scalar registers
//   1 words data[C][words]    contents of the result buffers, from word 0
//   2 register line data[16]  queue a line for the fill port
//   3 word[8]                 queue an instruction
//   4 pace mask               run until both queues are empty and all is done
//   5 register                give out the 64 lines of a register
//   6                         give out the pack slots
//   7                         one cycle of ``clear``, then give out ``nonfinite``
//
// A run gives four words for each instruction: the cycles of valid & ready and of done, counted
// from the first valid, the error, and ``nonfinite`` at done; then the cycles in which a fill
// waited.
// ``pace`` in 256ths is how often an instruction or a line of a fill pauses. Meanwhile the take
// port reads at random in the registers of ``mask``, which must be as they were last given out.
//
// COLS is the number of result buffers; what they show for no access is a NaN.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <vector>

#include "Vvector.h"
#include "verilated.h"

// Verilator's way to write fill__data.
#define PORT(group, name) unit.group##___05F##name

namespace {

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "vector harness: %s\n", what);
    std::exit(3);
}

constexpr int kLanes = 16, kLines = 64, kRegisters = 16, kParts = 8;
constexpr uint32_t kNothing = 0x7fdead00;

VerilatedContext context;
Vvector unit{&context};
std::mt19937 random_bits;
std::vector<uint32_t> script, given;
std::size_t position = 0;
std::vector<uint32_t> buffers[COLS];
uint32_t known[kRegisters][kLines][kLanes];

struct Line {
    uint32_t place[2], data[kLanes];
};
struct Word {
    uint32_t parts[kParts];
};
std::deque<Line> fills;
std::deque<Word> program;

uint32_t next() {
    if (position == script.size()) fail("the script ends too soon");
    return script[position++];
}

// The result buffers: data FEED_LATENCY = 2 cycles after the address.
uint32_t reading[COLS];

void tick() {
    uint32_t coming[COLS];
    for (int column = 0; column < COLS; ++column) {
        const std::vector<uint32_t>& buffer = buffers[column];
        if (unit.out_en && unit.out_address >= OUT_WORDS) fail("an access beyond the buffers");
        const bool there = unit.out_en && unit.out_address < buffer.size();
        coming[column] = there ? buffer[unit.out_address] : kNothing;
    }
    unit.clk = 1;
    unit.eval();
    std::memcpy(&unit.out_data, reading, sizeof reading);
    std::memcpy(reading, coming, sizeof reading);
    unit.clk = 0;
}

void cycle() {
    unit.eval();
    tick();
}

bool pauses(uint32_t pace) { return (random_bits() & 0xff) < pace; }

void run(uint32_t pace, uint32_t mask) {
    const std::size_t count = program.size();
    std::vector<uint32_t> taken, records;
    std::size_t done = 0;
    uint32_t waits = 0, quiet = 0;
    int asked[2] = {-1, -1};
    bool offered = false, filling = false;
    for (uint32_t now = 0; done < count || !program.empty() || !fills.empty(); ++now) {
        offered = !program.empty() && (offered || !pauses(pace));
        filling = !fills.empty() && (filling || !pauses(pace));
        PORT(port, valid) = offered;
        for (int part = 0; part < kParts; ++part)
            PORT(port, word)[part] = offered ? program.front().parts[part] : random_bits();
        PORT(fill, valid) = filling;
        if (filling) {
            PORT(fill, register) = fills.front().place[0];
            PORT(fill, line) = fills.front().place[1];
            std::memcpy(&PORT(fill, data), fills.front().data, sizeof fills.front().data);
        }
        const int place[2] = {int(random_bits() % kRegisters), int(random_bits() % kLines)};
        PORT(take, register) = place[0];
        PORT(take, line) = place[1];
        unit.eval();
        if (asked[0] >= 0 && (mask >> asked[0] & 1) &&
            std::memcmp(&PORT(take, data), known[asked[0]][asked[1]], 4 * kLanes))
            fail("a line that nobody wrote has changed");
        std::memcpy(asked, place, sizeof asked);
        if (PORT(port, done)) {
            if (done == taken.size()) fail("done without an instruction");
            records.insert(records.end(),
                           {taken[done++], now, uint32_t(PORT(port, error)), unit.nonfinite});
        } else if (PORT(port, error)) {
            fail("an error without done");
        }
        const bool accepted = offered && PORT(port, ready);
        const bool filled = filling && PORT(fill, ready);
        waits += filling && !filled;
        quiet = accepted || filled || PORT(port, done) ? 0 : quiet + 1;
        if (quiet > 100000) fail("nothing moves any more");
        tick();
        if (accepted) taken.push_back(now), program.pop_front(), offered = false;
        if (filled) fills.pop_front(), filling = false;
    }
    PORT(port, valid) = PORT(fill, valid) = 0;
    for (int n = 0; n < 40; ++n) {
        unit.eval();
        if (PORT(port, done)) fail("done once too often");
        tick();
    }
    given.insert(given.end(), records.begin(), records.end());
    given.push_back(waits);
}

void give_register(uint32_t number) {
    for (int line = 0; line < kLines; ++line) {
        PORT(take, register) = number;
        PORT(take, line) = line;
        cycle();
        unit.eval();
        std::memcpy(known[number][line], &PORT(take, data), sizeof known[number][line]);
    }
    const uint32_t* first = known[number][0];
    given.insert(given.end(), first, first + kLines * kLanes);
}

void give_packs() {
    for (int place = 0; place < 256; ++place) {
        PORT(pack, axis) = place >> 7;
        PORT(pack, slot) = place >> 6 & 1;
        PORT(pack, chunk) = place >> 4 & 3;
        PORT(pack, word) = place & 15;
        cycle();
        unit.eval();
        for (int part = 0; part < kParts; ++part) given.push_back(PORT(pack, data)[part]);
    }
}

void play() {
    while (position < script.size()) {
        const uint32_t command = next();
        if (command == 0) {
            for (int n = 0; n < kLanes; ++n) unit.scalars[n] = next();
        } else if (command == 1) {
            const uint32_t words = next();
            for (std::vector<uint32_t>& buffer : buffers) {
                buffer.clear();
                for (uint32_t n = 0; n < words; ++n) buffer.push_back(next());
            }
        } else if (command == 2) {
            Line line;
            for (uint32_t& part : line.place) part = next();
            for (uint32_t& part : line.data) part = next();
            fills.push_back(line);
        } else if (command == 3) {
            Word word;
            for (uint32_t& part : word.parts) part = next();
            program.push_back(word);
        } else if (command == 4) {
            const uint32_t pace = next();
            run(pace, next());
        } else if (command == 5) {
            give_register(next());
        } else if (command == 6) {
            give_packs();
        } else if (command == 7) {
            unit.clear = 1;
            cycle();
            unit.clear = 0;
            unit.eval();
            given.push_back(unit.nonfinite);
        } else {
            fail("an unknown command");
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) fail("usage: SCRIPT OUTPUT SEED");
    std::FILE* in = std::fopen(argv[1], "rb");
    if (!in) fail("cannot open the script");
    for (uint32_t word; std::fread(&word, sizeof word, 1, in);) script.push_back(word);
    std::fclose(in);
    random_bits.seed(std::strtoul(argv[3], nullptr, 0));
    unit.rst = 1;
    cycle();
    cycle();
    unit.rst = 0;
    play();
    std::FILE* out = std::fopen(argv[2], "wb");
    if (!out) fail("cannot open the output");
    std::fwrite(given.data(), 4, given.size(), out);
    if (std::fclose(out)) fail("cannot write the output");
    unit.final();
    return 0;
}
