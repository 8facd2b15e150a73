// Native harness of the STCE: runs a whole work list with no Python in the cycle loop.
//
//   Vstce JOB OUTPUT [--stall SEED] [--trace FILE.fst]
//
// JOB is the binary file that sim/worklist.py declares. OUTPUT receives the words read back, then
// one byte a retired tile (its non-finite flag), then the totals below. Progress goes to standard
// output as "tiles DONE", errors to standard error with exit status 3.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "Vstce.h"
#include "verilated.h"
#if VM_TRACE_FST
#include "verilated_fst_c.h"
#endif

namespace {

constexpr int kLanes = MAX_M;           // float16 elements of a west-to-east word
constexpr int kTileWords = TILE_WORDS;  // 32-bit words of a tile
constexpr int kRows = ROWS;
constexpr int kCols = COLS;
constexpr uint64_t kHang = 1u << 24;    // cycles without a retired tile

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "harness: %s\n", what);
    std::exit(3);
}

// Ports have a C++ type by width; these set or get a field of any of them.
void set_bits(uint32_t* words, unsigned lsb, unsigned width, uint64_t value) {
    for (unsigned bit = 0; bit < width;) {
        const unsigned word = (lsb + bit) / 32, shift = (lsb + bit) % 32;
        const unsigned take = std::min(32 - shift, width - bit);
        const uint32_t mask = (take == 32 ? ~0u : ((1u << take) - 1)) << shift;
        words[word] = (words[word] & ~mask) | (uint32_t(value >> bit) << shift & mask);
        bit += take;
    }
}
template <std::size_t N>
uint32_t* words_of(VlWide<N>& port) { return port.data(); }
template <typename T>
uint32_t* words_of(T& port) {
    static_assert(sizeof(T) >= sizeof(uint32_t), "a narrow port has no whole words");
    return reinterpret_cast<uint32_t*>(&port);
}

template <std::size_t N>
void enable_all(VlWide<N>& port, unsigned width, bool on) {
    for (std::size_t n = 0; n < N; ++n)
        port.data()[n] = !on ? 0 : n + 1 < N || width % 32 == 0 ? ~0u : (1u << width % 32) - 1;
}
template <typename T>
void enable_all(T& port, unsigned width, bool on) {
    port = !on ? 0 : width == 64 ? ~T(0) : T((uint64_t(1) << width) - 1);
}

class Job {
  public:
    explicit Job(const char* path) : file_(std::fopen(path, "rb")) {
        if (!file_) fail("cannot open the job");
    }
    ~Job() { std::fclose(file_); }
    bool header(uint32_t (&words)[4]) { return std::fread(words, 16, 1, file_) == 1; }
    void read(void* target, std::size_t bytes) {
        if (std::fread(target, 1, bytes, file_) != bytes) fail("the job ends early");
    }

  private:
    std::FILE* file_;
};

class Bench {
  public:
    Bench(const char* output, uint32_t stall, const char* trace)
        : top_(new Vstce{&context_}), output_(std::fopen(output, "wb")), stall_(stall) {
        if (!output_) fail("cannot write the output");
#if VM_TRACE_FST
        if (trace) {
            context_.traceEverOn(true);
            top_->trace(&fst_, 99);
            fst_.open(trace);
            tracing_ = true;
        }
#else
        if (trace) fail("built without waveforms");
#endif
        top_->rst = 1;
        cycle();
        cycle();
        top_->rst = 0;
        cycle();
    }
    ~Bench() {
        top_->final();
#if VM_TRACE_FST
        if (tracing_) fst_.close();
#endif
        std::fclose(output_);
    }

    void fill_w2e(Job& job, uint32_t address, uint32_t count) {
        std::vector<uint32_t> word(kRows * kLanes / 2);
        enable_all(top_->w2e_en, kRows, true);
        for (uint32_t n = 0; n < count; ++n) {
            job.read(word.data(), word.size() * 4);
            std::memcpy(words_of(top_->w2e_data), word.data(), word.size() * 4);
            top_->w2e_address = address + n;
            cycle();
        }
        enable_all(top_->w2e_en, kRows, false);
    }

    void fill_n2s(Job& job, uint32_t address, uint32_t count) {
        std::vector<uint32_t> word(kCols);
        enable_all(top_->n2s_en, kCols, true);
        for (uint32_t n = 0; n < count; ++n) {
            job.read(word.data(), word.size() * 4);
            for (int c = 0; c < kCols; ++c)
                set_bits(words_of(top_->n2s_data), c * WEIGHT_BITS, WEIGHT_BITS, word[c]);
            top_->n2s_address = address + n;
            cycle();
        }
        enable_all(top_->n2s_en, kCols, false);
    }

    void tiles(Job& job, uint32_t count) {
        std::vector<uint32_t> work(std::size_t(count) * kTileWords);
        job.read(work.data(), work.size() * 4);
        uint32_t next = 0;
        bool offered = false;
        uint64_t quiet = 0;
        for (;;) {
            // A valid payload stays until it is taken; stalls come before it is offered.
            if (!offered && next < count && !stalled()) {
                std::memcpy(top_->tile.data(), &work[std::size_t(next) * kTileWords],
                            kTileWords * 4);
                top_->tile_valid = offered = true;
            }
            settle();
            const bool taken = offered && top_->tile_ready;
            if (top_->retired) {
                flags_.push_back(top_->retired_nonfinite);
                quiet = 0;
                report();
            }
            if (next == count && !offered && !top_->busy) break;
            clock();
            if (taken) {
                top_->tile_valid = offered = false;
                ++next;
            }
            if (++quiet > kHang) fail("the engine hangs");
        }
    }

    void read(uint32_t address, uint32_t count) {
        top_->out_en = 1;
        for (uint32_t n = 0; n < count + LATENCY; ++n) {
            top_->out_address = address + n;
            if (n >= LATENCY) {
                settle();
                std::fwrite(words_of(top_->out_data), 4, kCols, output_);
            }
            cycle();
        }
        top_->out_en = 0;
    }

    void finish() {
        const uint64_t totals[3] = {top_->cycles, total_, flags_.size()};
        std::fwrite(flags_.data(), 1, flags_.size(), output_);
        std::fwrite(totals, 8, 3, output_);
        if (std::fflush(output_) || std::ferror(output_)) fail("cannot write the output");
    }

  private:
    void settle() { top_->clk = 0; top_->eval(); dump(); }
    void clock() { top_->clk = 1; top_->eval(); dump(); ++total_; }
    void cycle() { settle(); clock(); }
    void dump() {
        context_.timeInc(1);
#if VM_TRACE_FST
        if (tracing_) fst_.dump(context_.time());
#endif
    }
    bool stalled() {  // xorshift32: three cycles of four, when stalls are asked for
        if (!stall_) return false;
        stall_ ^= stall_ << 13;
        stall_ ^= stall_ >> 17;
        stall_ ^= stall_ << 5;
        return stall_ >> 30;
    }
    void report() {
        const auto now = std::chrono::steady_clock::now();
        if (now - reported_ < std::chrono::milliseconds(100)) return;
        reported_ = now;
        std::printf("tiles %zu\n", flags_.size());
        std::fflush(stdout);
    }

    VerilatedContext context_;
    std::unique_ptr<Vstce> top_;
    std::FILE* output_;
    uint32_t stall_;
    uint64_t total_ = 0;
    std::vector<uint8_t> flags_;
    std::chrono::steady_clock::time_point reported_{};
#if VM_TRACE_FST
    VerilatedFstC fst_;
    bool tracing_ = false;
#endif
};

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) fail("usage: JOB OUTPUT [--stall SEED] [--trace FILE]");
    uint32_t stall = 0;
    const char* trace = nullptr;
    for (int arg = 3; arg + 1 < argc; arg += 2) {
        if (!std::strcmp(argv[arg], "--stall")) stall = std::strtoul(argv[arg + 1], nullptr, 0);
        else if (!std::strcmp(argv[arg], "--trace")) trace = argv[arg + 1];
        else fail("unknown option");
    }
    Job job(argv[1]);
    Bench bench(argv[2], stall, trace);
    uint32_t header[4];
    while (job.header(header)) {
        const uint32_t address = header[1], count = header[2];
        switch (header[0]) {
            case 1: bench.fill_w2e(job, address, count); break;
            case 2: bench.fill_n2s(job, address, count); break;
            case 3: bench.tiles(job, count); break;
            case 4: bench.read(address, count); break;
            default: fail("unknown record");
        }
    }
    bench.finish();
    return 0;
}
