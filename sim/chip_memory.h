// The device memory on the chip's AXI4 ports: latency, bandwidth, pauses, faults, and a check of
// every rule of the protocol that the chip could break. Part of chip_harness.cpp.

#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

#include "Vsat.h"

namespace {

constexpr uint64_t kBus = BUS_BYTES;
constexpr unsigned kBusLog2 = __builtin_ctzll(kBus);
constexpr unsigned kBurst = BURST_BEATS;
constexpr uint64_t kPage = 4096;
constexpr unsigned kIncr = 1, kOkay = 0, kDecodeError = 3;
constexpr uint64_t kReset = 2;         // cycles of reset
constexpr uint8_t kGarbage = 0xA5;    // data of a read that failed

uint64_t now = 0;

[[noreturn, gnu::format(printf, 1, 2)]] void fail(const char* format, ...) {
    std::va_list arguments;
    va_start(arguments, format);
    std::fprintf(stderr, "cycle %" PRIu64 ": ", now);
    std::vfprintf(stderr, format, arguments);
    std::fputc('\n', stderr);
    std::exit(3);
}

struct Options {
    uint64_t read_latency = 1, write_latency = 1, outstanding = 64, jitter = 0, seed = 0;
    double bandwidth = 0, stall = 0;
};

class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t bits() {  // splitmix64
        uint64_t z = state_ += 0x9E3779B97F4A7C15u;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        return z ^ z >> 31;
    }
    uint64_t below(uint64_t end) { return bits() % end; }
    bool chance(double probability) { return double(bits() >> 11) * 0x1p-53 < probability; }

  private:
    uint64_t state_;
};

// Pauses of one channel, in phases: none, as asked for, nearly always.
class Pauses {
  public:
    Pauses(Random& random, double probability) : random_(random), probability_(probability) {}
    bool operator()() {
        if (!probability_) return false;
        if (!left_--) {
            left_ = random_.below(64);
            const double levels[] = {0, probability_, probability_, 0.95};
            level_ = levels[random_.below(4)];
        }
        return random_.chance(level_);
    }

  private:
    Random& random_;
    double probability_, level_ = 0;
    uint64_t left_ = 0;
};

// What AXI asks of every channel: valid and payload stay until ready; nothing is valid at reset.
template <typename Payload>
class Watch {
  public:
    explicit Watch(const char* name) : name_(name) {}
    bool taken(bool valid, bool ready, const Payload& payload) {
        if (waiting_ && !valid) fail("%s: valid fell before ready", name_);
        if (waiting_ && std::memcmp(&payload, &held_, sizeof held_))
            fail("%s: the payload changed before ready", name_);
        waiting_ = valid && !ready;
        if (waiting_) held_ = payload;
        return valid && ready;
    }

  private:
    const char* name_;
    bool waiting_ = false;
    Payload held_{};
};

struct Request {  // AR or AW; no padding, so that memcmp compares it
    uint64_t address = 0;
    uint32_t id = 0, beats = 0, size = 0, burst = 0;

    uint64_t beat(uint64_t n) const { return (address >> size << size) + (n << size); }
    void check(const char* name) const {
        if (burst != kIncr) fail("%s: burst type %u is not INCR", name, burst);
        if (size > kBusLog2) fail("%s: beats of %u bytes on a bus of %u", name, 1u << size,
                                  unsigned(kBus));
        if (beats > kBurst) fail("%s: a burst of %u beats; at most %u", name, beats, kBurst);
        if (address / kPage != (beat(beats) - 1) / kPage)
            fail("%s: the burst at %#" PRIx64 " crosses 4 KB", name, address);
    }
};
static_assert(sizeof(Request) == 24);

struct Beat {  // W
    uint8_t data[kBus] = {}, strobe[kBus / 8] = {}, last = 0;
};
static_assert(sizeof(Beat) == kBus + kBus / 8 + 1);

struct Fault {
    uint64_t first, end;
    unsigned response;
    bool write;
};

struct Stats {
    uint64_t read_beats, write_beats, read_bursts, write_bursts, most_reads, most_writes;
    uint64_t read_held;  // cycles in which a read beat waited for rready
};

// In-order memory behind the AXI4 ports. A write is seen by reads from its response on at the
// latest, a read sees memory as of its beat at the earliest; with a seed also as early as allowed.
class Memory {
  public:
    Memory(Vsat& top, const char* path, const Options& options)
        : top_(top), options_(options), random_(options.seed) {
        const int file = open(path, O_RDWR);
        struct stat status;
        if (file < 0 || fstat(file, &status)) fail("cannot open the memory file");
        size_ = status.st_size;
        void* map = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (map == MAP_FAILED) fail("cannot map the memory file");
        bytes_ = static_cast<uint8_t*>(map);
        close(file);
    }

    // The inputs of this cycle; they follow from earlier cycles only.
    void drive() {
        budget_ = std::min(budget_ + options_.bandwidth, double(kBus));
        const bool flows = !options_.bandwidth || budget_ > 0;
        top_.m_axi_arready = reads_under_way() < options_.outstanding && !pause_ar_();
        top_.m_axi_awready = writes_under_way() < options_.outstanding && !pause_aw_();
        top_.m_axi_wready = flows && !pause_w_();
        if (!top_.m_axi_rvalid && flows) offer_read();
        if (!top_.m_axi_bvalid) offer_response();
    }

    // The chip's outputs of this cycle, combinational ones settled.
    void sample() {
        if (now <= kReset) {
            if (now && (top_.m_axi_arvalid || top_.m_axi_awvalid || top_.m_axi_wvalid))
                fail("valid is high in reset or in the cycle after");
            return;
        }
        const Request ar{top_.m_axi_araddr, top_.m_axi_arid, top_.m_axi_arlen + 1u,
                         top_.m_axi_arsize, top_.m_axi_arburst};
        if (ar_.taken(top_.m_axi_arvalid, top_.m_axi_arready, ar)) take_read(ar);
        const Request aw{top_.m_axi_awaddr, top_.m_axi_awid, top_.m_axi_awlen + 1u,
                         top_.m_axi_awsize, top_.m_axi_awburst};
        if (aw_.taken(top_.m_axi_awvalid, top_.m_axi_awready, aw)) take_write(aw);
        Beat beat;
        if (top_.m_axi_wvalid) {
            std::memcpy(beat.data, &top_.m_axi_wdata, sizeof beat.data);
            std::memcpy(beat.strobe, &top_.m_axi_wstrb, sizeof beat.strobe);
            beat.last = top_.m_axi_wlast;
        }
        if (w_.taken(top_.m_axi_wvalid, top_.m_axi_wready, beat)) {
            beats_.push_back(beat);
            budget_ -= kBus;
            ++stats_.write_beats;
        }
        match();
        stats_.most_reads = std::max(stats_.most_reads, reads_under_way());
        stats_.most_writes = std::max(stats_.most_writes, writes_under_way());
    }

    // After the clock edge: responses that were taken are gone.
    void finish(bool r_taken, bool b_taken) {
        if (top_.m_axi_rvalid && !r_taken) ++stats_.read_held;
        if (r_taken) {
            ++stats_.read_beats;
            if (top_.m_axi_rlast) --reads_[top_.m_axi_rid].under_way;
            top_.m_axi_rvalid = 0;
        }
        if (b_taken) {
            --writes_left_;
            top_.m_axi_bvalid = 0;
        }
    }

    // Nothing but program fetches may be under way when the host is called.
    void check_quiet() const {
        if (writes_left_ || !beats_.empty() || top_.m_axi_awvalid || top_.m_axi_wvalid)
            fail("interrupt: a write is under way");
        if (reads_[1].under_way) fail("interrupt: a data read is under way");
    }

    const Stats& stats() const { return stats_; }
    std::vector<Fault> faults;

  private:
    struct Read {
        Request request;
        uint64_t order, ready;
        std::vector<uint8_t> early;  // what the burst reads, if that was settled at once
        uint64_t next = 0;
    };
    struct Write {
        Request request;
        bool early;
        uint64_t ready = 0;
        unsigned response = kOkay;
        std::vector<Beat> beats{};  // not in memory yet
        uint64_t done = 0;          // beats that are
    };
    struct Queue {
        std::deque<Read> bursts{};
        uint64_t under_way = 0;  // bursts whose last beat has not been taken
    };

    uint64_t reads_under_way() const { return reads_[0].under_way + reads_[1].under_way; }
    uint64_t writes_under_way() const { return writes_left_; }
    uint64_t after(uint64_t latency) {
        return now + std::max<uint64_t>(latency, 1) +
               (options_.jitter ? random_.below(options_.jitter + 1) : 0);
    }
    bool coin() { return options_.seed && random_.below(2); }

    unsigned response(uint64_t first, uint64_t bytes, bool write) const {
        if (first >= size_ || bytes > size_ - first) return kDecodeError;
        for (const Fault& fault : faults)
            if (fault.write == write && first < fault.end && first + bytes > fault.first)
                return fault.response;
        return kOkay;
    }
    unsigned read_beat(const Request& request, uint64_t n, uint8_t* data) const {
        const uint64_t at = request.beat(n);
        const unsigned result = response(at, 1u << request.size, false);
        if (result == kOkay) std::memcpy(data, bytes_ + at / kBus * kBus, kBus);
        else std::memset(data, kGarbage, kBus);
        return result;
    }

    void take_read(const Request& request) {
        request.check("AR");
        ++stats_.read_bursts;
        ++reads_[request.id].under_way;
        Read read{request, stats_.read_bursts, after(options_.read_latency), {}};
        if (coin()) {
            read.early.resize(request.beats * kBus);
            for (uint64_t n = 0; n < request.beats; ++n)
                read_beat(request, n, &read.early[n * kBus]);
        }
        reads_[request.id].bursts.push_back(std::move(read));
    }
    void take_write(const Request& request) {
        request.check("AW");
        if (request.id) fail("AW: the ID is not 0");
        ++stats_.write_bursts;
        ++writes_left_;
        writes_.push_back({request, coin()});
    }

    void offer_read() {
        std::deque<Read>* chosen = nullptr;
        for (Queue& queue : reads_) {
            if (queue.bursts.empty() || queue.bursts.front().ready > now) continue;
            const bool better = chosen && (options_.seed ? random_.below(2) :
                queue.bursts.front().order < chosen->front().order);
            if (!chosen || better) chosen = &queue.bursts;
        }
        if (!chosen || pause_r_()) return;
        Read& read = chosen->front();
        uint8_t data[kBus];
        top_.m_axi_rresp = read_beat(read.request, read.next, data);
        if (!read.early.empty()) std::memcpy(data, &read.early[read.next * kBus], kBus);
        std::memcpy(&top_.m_axi_rdata, data, kBus);
        top_.m_axi_rid = read.request.id;
        top_.m_axi_rlast = ++read.next == read.request.beats;
        top_.m_axi_rvalid = 1;
        budget_ -= kBus;
        if (top_.m_axi_rlast) chosen->pop_front();
    }
    void offer_response() {
        if (writes_.empty() || !writes_.front().ready || writes_.front().ready > now || pause_b_())
            return;
        Write& write = writes_.front();
        commit(write);
        top_.m_axi_bresp = write.response;
        top_.m_axi_bid = 0;
        top_.m_axi_bvalid = 1;
        writes_.pop_front();
        --open_;
    }

    // Data belongs to the addresses in their order; either may come first.
    void match() {
        while (open_ < writes_.size() && !beats_.empty()) {
            Write& write = writes_[open_];
            const Beat& beat = beats_.front();
            const uint64_t n = got_++;
            const uint64_t at = write.request.beat(n), lane = at % kBus;
            const uint64_t bytes = 1u << write.request.size;
            for (uint64_t byte = 0; byte < kBus; ++byte)
                if (strobe(beat, byte) && (byte < lane || byte >= lane + bytes))
                    fail("W: a strobe outside the beat");
            const bool last = got_ == write.request.beats;
            if (beat.last != last) fail("W: WLAST is %u in beat %u of %u", beat.last,
                                        unsigned(got_), write.request.beats);
            write.response = std::max(write.response, response(at, bytes, true));
            write.beats.push_back(beat);
            if (write.early)  // and all before it: the order of writes stays
                for (uint64_t old = 0; old <= open_; ++old) commit(writes_[old]);
            beats_.pop_front();
            if (last) {
                write.ready = after(options_.write_latency);
                ++open_;
                got_ = 0;
            }
        }
    }
    static bool strobe(const Beat& beat, uint64_t byte) {
        return beat.strobe[byte / 8] >> byte % 8 & 1;
    }
    void commit(Write& write) {
        for (const Beat& beat : write.beats) {
            const uint64_t at = write.request.beat(write.done++);
            if (response(at, 1u << write.request.size, true) != kOkay) continue;
            for (uint64_t byte = 0; byte < kBus; ++byte)
                if (strobe(beat, byte)) bytes_[at / kBus * kBus + byte] = beat.data[byte];
        }
        write.beats.clear();
    }

    Vsat& top_;
    const Options options_;
    Random random_;
    Pauses pause_ar_{random_, options_.stall}, pause_r_{random_, options_.stall};
    Pauses pause_aw_{random_, options_.stall}, pause_w_{random_, options_.stall};
    Pauses pause_b_{random_, options_.stall};
    Watch<Request> ar_{"AR"}, aw_{"AW"};
    Watch<Beat> w_{"W"};
    uint64_t size_ = 0;
    uint8_t* bytes_ = nullptr;
    double budget_ = 0;  // bytes that may pass; a beat passes while it is above zero
    Queue reads_[2];     // by ID
    std::deque<Write> writes_;
    std::deque<Beat> beats_;
    uint64_t open_ = 0, got_ = 0;  // first of writes_ that lacks data, and beats it has
    uint64_t writes_left_ = 0;     // bursts whose response has not been taken
    Stats stats_{};
};

}  // namespace
