// The write side of a bus: drives a write manager and records all that happens on its ports.
//
//   Vdut INPUT OUTPUT SEED AW W B VALID LATENCY MODE
//
// AW, W, B: chance in 256 that the subordinate moves that channel in a cycle; VALID: chance that
// the next record is offered. LATENCY: cycles from a burst's last beat to its response, at least.
// MODE: free, or one burst at a time: both (neither channel before the other is offered), aw (no
// data before the address is taken), w (no address before the data is taken).
// Bits 41 and 40 of a burst's address are its response. OUTPUT: one Event each.
//
// With UNIT the device is the store unit and INPUT holds Bases, Lines, Packs, then Instructions;
// without, it is the write DMA and INPUT holds Words.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "Vdut.h"
#include "verilated.h"

namespace {

constexpr uint32_t kBusWords = BUS_BYTES / 4;
constexpr uint32_t kHang = 20000;  // cycles without an event
constexpr uint32_t kTail = 64;     // cycles after the last event that is expected

enum Kind : uint32_t { kAw = 1, kW, kB, kDone, kError, kSkipped, kTake };

struct Event {
    uint32_t kind, cycle, offered, value;
    uint64_t address;
    uint32_t strobe[4];
    uint32_t data[32];
};
#ifdef UNIT
struct Record { uint32_t word[8], nonfinite; };
uint64_t bases[8];
uint32_t lines[16][64][16], packs[2][2][4][16][8];
#define PORT(name) port___05F##name
#else
struct Record { uint32_t word[8], flags; uint32_t address[2]; };
#define PORT(name) name
#endif
#define AXI(name) axi___05F##name

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "write harness: %s\n", what);
    std::exit(3);
}

struct Chance {
    uint64_t state;
    bool operator()(uint32_t of_256) {  // xorshift64*
        state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
        return (state * 0x2545F4914F6CDD1Dull >> 56) < of_256;
    }
};

// Strobes are an integer up to 64 bits, words beyond; data always has words.
template <std::size_t N>
void copy(uint32_t* to, const VlWide<N>& port, std::size_t words) {
    std::memcpy(to, port.data(), 4 * words);
}
template <typename T>
void copy(uint32_t* to, const T& port, std::size_t) { std::memcpy(to, &port, sizeof port); }

VerilatedContext context;
Vdut dut{&context};

void clock() {
    dut.clk = 1;
    dut.eval();
    dut.clk = 0;
    dut.eval();
}

void read(std::FILE* file, void* target, std::size_t bytes) {
    if (std::fread(target, 1, bytes, file) != bytes) fail("the input ends early");
}

class Bench {
  public:
    Bench(char** arguments)
        : output_(std::fopen(arguments[2], "wb")),
          chance_{std::strtoull(arguments[3], nullptr, 0) * 2 + 1},
          aw_(std::atoi(arguments[4])), w_(std::atoi(arguments[5])), b_(std::atoi(arguments[6])),
          valid_(std::atoi(arguments[7])), latency_(std::atoi(arguments[8])),
          mode_(arguments[9]) {
        std::FILE* file = std::fopen(arguments[1], "rb");
        if (!file || !output_) fail("cannot open the files");
#ifdef UNIT
        read(file, bases, sizeof bases);
        read(file, lines, sizeof lines);
        read(file, packs, sizeof packs);
        std::memcpy(dut.bases.data(), bases, sizeof bases);
#endif
        for (Record record; std::fread(&record, sizeof record, 1, file);) {
            records_.push_back(record);
#ifdef UNIT
            ++expected_;
#else
            expected_ += record.flags != 0;
#endif
        }
        std::fclose(file);
        dut.rst = 1;
        clock();
        clock();
        dut.rst = 0;
    }

    void run() {
        for (quiet_ = 0; done_ < expected_ || next_ < records_.size() || quiet_ < kTail; ++quiet_) {
            if (quiet_ > kHang) fail("nothing happens any more");
            offer();
            dut.eval();
            subordinate();
            dut.eval();
            observe();
            clock();
            serve();
            ++cycle_;
        }
        if (std::fclose(output_)) fail("cannot write the output");
    }

  private:
    void emit(Event event) {
        event.cycle = cycle_;
        if (!std::fwrite(&event, sizeof event, 1, output_)) fail("cannot write the output");
        quiet_ = 0;
    }

    // The next record stays offered until it is taken.
    void offer() {
        offering_ = next_ < records_.size() && (offering_ || chance_(valid_));
        dut.PORT(valid) = offering_;
        if (offering_) {
            const Record& record = records_[next_];
            std::memcpy(dut.PORT(word).data(), record.word, sizeof record.word);
#ifdef UNIT
            dut.nonfinite = record.nonfinite;
#else
            std::memcpy(&dut.address, record.address, sizeof record.address);
            dut.flush = record.flags & 1;
            dut.blank = record.flags >> 1;
#endif
        } else {  // what means nothing may be anything
            for (int n = 0; n < 8; ++n) dut.PORT(word)[n] = chance_.state >> n;
#ifdef UNIT
            dut.nonfinite = chance_(128);
#else
            dut.flush = dut.blank = chance_(128);
#endif
        }
    }

    void subordinate() {
        bool aw = true, w = true;
        if (mode_ == "both") {
            aw = taken_aw_ <= taken_w_ && (taken_w_ > taken_aw_ || dut.AXI(wvalid));
            w = taken_aw_ > taken_w_ || (taken_w_ == taken_aw_ && dut.AXI(awvalid));
        } else if (mode_ == "aw") {
            aw = taken_aw_ == taken_w_;
            w = taken_aw_ > taken_w_;
        } else if (mode_ == "w") {
            aw = taken_w_ > taken_aw_;
            w = taken_w_ == taken_aw_;
        } else if (mode_ != "free") {
            fail("unknown mode");
        }
        dut.AXI(awready) = aw && chance_(aw_);
        dut.AXI(wready) = w && chance_(w_);
        const bool due = answered_ < complete_.size() && answered_ < addresses_.size()
            && cycle_ >= complete_[answered_] + latency_;
        answering_ = due && (answering_ || chance_(b_));
        dut.AXI(bvalid) = answering_;
        dut.AXI(bresp) = answering_ ? addresses_[answered_] >> 40 & 3 : chance_.state & 3;
    }

    // Offers begin, stay as they are, and are taken.
    void channel(bool valid, bool ready, const Event& now, Event& offered, bool& waiting) {
        if (waiting && !valid) fail("an offer was withdrawn");
        if (!valid) return;
        if (!waiting) {
            offered = now;
            offered.offered = cycle_;
        } else if (std::memcmp(&offered.value, &now.value, sizeof now - 12)) {
            fail("a payload changed while it waited");
        }
        waiting = !ready;
        if (ready) emit(offered);
    }

    void observe() {
        Event aw{kAw, 0, 0, 0, dut.AXI(awaddr), {}, {}}, w{kW, 0, 0, dut.AXI(wlast), 0, {}, {}};
        aw.value = dut.AXI(awlen) | dut.AXI(awsize) << 8 | dut.AXI(awburst) << 16
            | dut.AXI(awid) << 24;
        copy(w.strobe, dut.AXI(wstrb), BUS_BYTES / 32);
        copy(w.data, dut.AXI(wdata), kBusWords);
        channel(dut.AXI(awvalid), dut.AXI(awready), aw, aw_offered_, aw_waits_);
        channel(dut.AXI(wvalid), dut.AXI(wready), w, w_offered_, w_waits_);
        if (dut.AXI(awvalid) && dut.AXI(awready)) {
            addresses_.push_back(dut.AXI(awaddr));
            ++taken_aw_;
        }
        if (dut.AXI(wvalid) && dut.AXI(wready) && dut.AXI(wlast)) {
            complete_.push_back(cycle_);
            ++taken_w_;
        }
        if (!dut.AXI(bready)) fail("a response has to wait");
        if (answering_) {
            emit({kB, 0, 0, dut.AXI(bresp), addresses_[answered_++], {}, {}});
            answering_ = false;
        }
        if (offering_ && dut.PORT(ready)) {
            emit({kTake, 0, 0, uint32_t(next_++), 0, {}, {}});
            offering_ = false;
        }
        if (dut.PORT(error)) emit({kError, 0, 0, dut.PORT(error), 0, {}, {}});
        if (dut.PORT(done)) emit({kDone, 0, 0, uint32_t(done_++), 0, {}, {}});
#ifdef UNIT
        if (dut.skipped) emit({kSkipped, 0, 0, 0, 0, {}, {}});
        line_ = lines[dut.take___05Fregister][dut.take___05Fline];
        pack_ = packs[dut.pack___05Faxis][dut.pack___05Fslot][dut.pack___05Fchunk]
            [dut.pack___05Fword];
#endif
    }

    // What the addresses of the cycle before ask for.
    void serve() {
#ifdef UNIT
        std::memcpy(dut.take___05Fdata.data(), line_, 64);
        std::memcpy(dut.pack___05Fdata.data(), pack_, 32);
#endif
    }

    std::FILE* output_;
    Chance chance_;
    uint32_t aw_, w_, b_, valid_, latency_;
    std::string mode_;
    std::vector<Record> records_;
    std::vector<uint64_t> addresses_;  // of the bursts whose address is taken
    std::vector<uint32_t> complete_;   // cycles in which their last beats were taken
    std::size_t next_ = 0, done_ = 0, expected_ = 0, answered_ = 0, taken_aw_ = 0, taken_w_ = 0;
    uint32_t cycle_ = 0, quiet_ = 0;
    bool offering_ = false, answering_ = false, aw_waits_ = false, w_waits_ = false;
    Event aw_offered_{}, w_offered_{};
    const uint32_t *line_ = nullptr, *pack_ = nullptr;
};

}  // namespace

int main(int argc, char** argv) {
    if (argc != 10) fail("usage: INPUT OUTPUT SEED AW W B VALID LATENCY MODE");
    Bench(argv).run();
    dut.final();
    return 0;
}
