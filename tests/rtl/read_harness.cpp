// The read side of a bus: a memory with latency and stalls for a read client, and a record of all
// that happens on the client's ports.
//
//   Vdut INPUT OUTPUT SEED AR R VALID TAKE LATENCY SPREAD
//
// AR, R: chance in 256 that the memory moves that channel in a cycle; VALID: chance that the next
// record is offered; TAKE: chance that what the client puts out is taken. LATENCY: cycles from a
// burst to its first beat, and up to SPREAD more. Bits 41 and 40 of a burst's address are its
// response. The contents of a word follow from its address: see lane(). OUTPUT: one Event each.
//
// With UNIT the device is the load unit and INPUT holds the bases, then instructions; without, it
// is the read DMA and INPUT holds requests.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

#include "Vdut.h"
#include "verilated.h"

namespace {

constexpr uint32_t kWords = BUS_BYTES / 32;
constexpr uint64_t kPage = 4096;
constexpr uint32_t kHang = 20000;  // cycles without an event
constexpr uint32_t kTail = 64;     // cycles after the last event that is expected

enum Kind : uint32_t { kAr = 1, kBeat, kTaken, kDone, kError, kRow, kColumn, kFill, kWord };

struct Event {
    uint32_t kind, cycle, value, extra;
    uint64_t address;
    uint32_t data[30];
};
struct Burst {
    uint64_t address;
    uint32_t beats, due;
};
#ifdef UNIT
struct Record { uint32_t word[8]; };
uint64_t bases[8];
#define PORT(name) dut.port___05F##name
#else
struct Record { uint64_t address; uint32_t zero, flush, mark, pad; };
#endif

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "read harness: %s\n", what);
    std::exit(3);
}

struct Chance {
    uint64_t state;
    uint32_t draw() {  // xorshift64*
        state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
        return uint32_t(state * 0x2545F4914F6CDD1Dull >> 40);
    }
    bool operator()(uint32_t of_256) { return draw() % 256 < of_256; }
};

uint16_t lane(uint64_t word, uint32_t number) {
    uint64_t x = (word * 16 + number) * 0x9E3779B97F4A7C15ull;
    x ^= x >> 29;
    return uint16_t(x * 0xBF58476D1CE4E5B9ull >> 48);
}

template <std::size_t N>
void copy(void* to, const VlWide<N>& port) { std::memcpy(to, port.data(), 4 * N); }
template <typename T>
void copy(void* to, const T& port) { std::memcpy(to, &port, sizeof port); }

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
    explicit Bench(char** arguments)
        : output_(std::fopen(arguments[2], "wb")),
          chance_{std::strtoull(arguments[3], nullptr, 0) * 2 + 1},
          ar_(std::atoi(arguments[4])), r_(std::atoi(arguments[5])),
          valid_(std::atoi(arguments[6])), take_(std::atoi(arguments[7])),
          latency_(std::atoi(arguments[8])), spread_(std::atoi(arguments[9])) {
        std::FILE* file = std::fopen(arguments[1], "rb");
        if (!file || !output_) fail("cannot open the files");
#ifdef UNIT
        read(file, bases, sizeof bases);
        std::memcpy(dut.bases.data(), bases, sizeof bases);
#endif
        for (Record record; std::fread(&record, sizeof record, 1, file);)
            records_.push_back(record);
        std::fclose(file);
        dut.rst = 1;
        clock();
        clock();
        dut.rst = 0;
    }

    void run() {
        for (quiet_ = 0; done_ < records_.size() || next_ < records_.size() || quiet_ < kTail;
             ++quiet_) {
            if (quiet_ > kHang) fail("nothing happens any more");
            offer();
            serve();
            dut.eval();
            watch_requests();
            watch_device();
            clock();
            ++cycle_;
        }
        if (!bursts_.empty()) fail("beats are left over");
        if (std::fclose(output_)) fail("cannot write the output");
    }

  private:
    Event& event(Kind kind, uint32_t value) {
        quiet_ = 0;
        event_ = {};
        event_.kind = kind;
        event_.cycle = cycle_;
        event_.value = value;
        return event_;
    }
    void log(const Event& one) { std::fwrite(&one, sizeof one, 1, output_); }

    void offer() {
        offered_ = next_ < records_.size() && (offered_ || chance_(valid_));
        taking_ = chance_(take_);
        const Record record = offered_ ? records_[next_] : Record{};
#ifdef UNIT
        PORT(valid) = offered_;
        std::memcpy(PORT(word).data(), record.word, sizeof record.word);
        dut.fill___05Fready = taking_;
#else
        dut.valid = offered_;
        dut.address = record.address;
        dut.zero = record.zero;
        dut.flush = record.flush;
        dut.mark = record.mark;
        dut.word_ready = taking_;
#endif
    }

    void serve() {
        dut.ar_ready = chance_(ar_);
        beat_ = !bursts_.empty() && bursts_.front().due <= cycle_ && (beat_ || chance_(r_));
        dut.r_valid = beat_;
        dut.r_error = 0;
        dut.r_last = 0;
        if (!beat_) return;
        const Burst& burst = bursts_.front();
        uint16_t lanes[16 * kWords];
        for (uint32_t n = 0; n < 16 * kWords; ++n)
            lanes[n] = lane(burst.address / 32 + n / 16, n % 16);
        std::memcpy(dut.r_data.data(), lanes, sizeof lanes);
        dut.r_error = burst.address >> 40 & 3;
        dut.r_last = burst.beats == 1;
    }

    void watch_requests() {
        if (waiting_ && (!dut.ar_valid || dut.ar_address != address_ || dut.ar_length != length_))
            fail("the burst changed while it waited");
        if (dut.ar_valid) {
            const uint64_t first = dut.ar_address, beats = dut.ar_length + 1u;
            if (!waiting_) asked_ = cycle_;
            if (first % BUS_BYTES) fail("the burst's address is no multiple of a beat");
            if (beats > BURST_BEATS) fail("the burst is too long");
            if ((first + beats * BUS_BYTES - 1) / kPage != first / kPage)
                fail("the burst crosses a boundary");
            if (dut.ar_ready) {
                bursts_.push_back({first, uint32_t(beats), cycle_ + 1 + latency_ + (
                    spread_ ? chance_.draw() % spread_ : 0)});
                Event& one = event(kAr, beats);
                one.extra = asked_;
                one.address = first;
                log(one);
            }
        }
        waiting_ = dut.ar_valid && !dut.ar_ready;
        address_ = dut.ar_address;
        length_ = dut.ar_length;
        if (!dut.r_ready) fail("a beat was asked for that has no room");
        if (!beat_) return;
        log(event(kBeat, dut.r_last));
        beat_ = false;
        Burst& burst = bursts_.front();
        burst.address += BUS_BYTES;
        if (!--burst.beats) bursts_.pop_front();
    }

    void watch_device() {
#ifdef UNIT
        const auto& ready = PORT(ready);
        const auto& error = PORT(error);
#else
        const auto& ready = dut.ready;
        const auto& error = dut.error;
#endif
        if (offered_ && ready) {
            log(event(kTaken, next_++));
            offered_ = false;
        }
        if (error) log(event(kError, error));
#ifdef UNIT
        if (dut.w2e_en) {
            Event& one = event(kRow, dut.w2e_en);
            one.extra = dut.w2e_address;
            copy(one.data, dut.w2e_data);
            log(one);
        }
        if (dut.n2s_en) {
            Event& one = event(kColumn, dut.n2s_en);
            one.extra = dut.n2s_address;
            copy(one.data, dut.n2s_data);
            log(one);
        }
        Event one{};
        one.value = dut.fill___05Fregister;
        one.extra = dut.fill___05Fline;
        copy(one.data, dut.fill___05Fdata);
        const bool line = dut.fill___05Fvalid;
        if (held_ && (!line || one.value != held_line_.value || one.extra != held_line_.extra
                      || std::memcmp(one.data, held_line_.data, sizeof one.data)))
            fail("the line changed while it waited");
        held_ = line && !taking_;
        held_line_ = one;
        if (line && taking_) {
            event(kFill, 0);
            one.kind = kFill;
            one.cycle = cycle_;
            log(one);
        }
        if (PORT(done)) log(event(kDone, done_++));
#else
        if (dut.word_valid && taking_) {
            Event& one = event(kWord, dut.word_mark);
            copy(one.data, dut.word);
            log(one);
            ++done_;
        }
#endif
    }

    std::FILE* output_;
    Chance chance_;
    uint32_t ar_, r_, valid_, take_, latency_, spread_;
    std::vector<Record> records_;
    std::deque<Burst> bursts_;
    std::size_t next_ = 0, done_ = 0;
    uint32_t cycle_ = 0, quiet_ = 0, asked_ = 0, length_ = 0;
    uint64_t address_ = 0;
    bool offered_ = false, taking_ = false, beat_ = false, waiting_ = false, held_ = false;
    Event event_{}, held_line_{};
};

}  // namespace

int main(int argc, char** argv) {
    if (argc != 10) fail("usage: INPUT OUTPUT SEED AR R VALID TAKE LATENCY SPREAD");
    Bench(argv).run();
    dut.final();
    return 0;
}
