// Native harness of the chip: a device memory on its AXI4 ports, the host on its AXI4-Lite
// port.
//
//   Vsat MEMORY [--read-latency N] [--write-latency N] [--bandwidth BYTES_PER_CYCLE]
//        [--outstanding N] [--jitter N] [--stall PROBABILITY] [--seed N]
//
// MEMORY is a file, mapped and shared: device memory from address 0. Standard input has one command
// a line and standard output one answer a line:
//
//   write OFFSET VALUE   a register write                       ok | response N
//   read OFFSET          a register read                        VALUE | response N
//   run MAX              until the interrupt line is high       interrupt CYCLES | timeout CYCLES
//   idle N               so many cycles                         ok
//   cycles               cycles so far                          N
//   stats                see Stats                              N N ...
//   faults [FIRST END RESPONSE read|write]...   replaces all    ok
//   trace FILE           an FST waveform from here on           ok
//   quit
//
// A breach of the AXI protocol by the chip ends the harness: message on standard error, status 3.
// BUS_BYTES and BURST_BEATS are those of the architecture.

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "Vsat.h"
#include "chip_memory.h"
#include "verilated.h"
#if VM_TRACE_FST
#include "verilated_fst_c.h"
#endif

namespace {

constexpr uint64_t kLiteHang = 4096;  // cycles without an answer on the AXI4-Lite port

#if VM_TRACE_FST
VerilatedFstC waveform;  // closed, and so complete, however the harness exits
#endif

class Bench {
  public:
    Bench(const char* path, const Options& options)
        : memory_(*top_, path, options), random_(~options.seed),
          pause_(random_, options.stall) {
        top_->rst = 1;
        while (now < kReset) cycle();
        top_->rst = 0;
        cycle();
    }
    ~Bench() { top_->final(); }

    unsigned write(uint32_t offset, uint32_t value) {
        bool address = true, data = true;  // still to be taken
        top_->s_axi_control_awaddr = offset;
        top_->s_axi_control_wdata = value;
        top_->s_axi_control_wstrb = 0xF;
        for (uint64_t n = 0; n < kLiteHang; ++n) {
            writing_ = !address && !data;
            top_->s_axi_control_awvalid |= address && !pause_();
            top_->s_axi_control_wvalid |= data && !pause_();
            top_->s_axi_control_bready = writing_ && !pause_();
            settle();
            const bool aw = top_->s_axi_control_awvalid && top_->s_axi_control_awready;
            const bool w = top_->s_axi_control_wvalid && top_->s_axi_control_wready;
            const bool b = top_->s_axi_control_bvalid && top_->s_axi_control_bready;
            const unsigned response = top_->s_axi_control_bresp;
            clock();
            if (aw) address = top_->s_axi_control_awvalid = false;
            if (w) data = top_->s_axi_control_wvalid = false;
            if (b) {
                writing_ = top_->s_axi_control_bready = false;
                return response;
            }
        }
        fail("AXI4-Lite: no answer to a write of register %#x", offset);
    }

    unsigned read(uint32_t offset, uint32_t& value) {
        bool address = true;
        top_->s_axi_control_araddr = offset;
        for (uint64_t n = 0; n < kLiteHang; ++n) {
            reading_ = !address;
            top_->s_axi_control_arvalid |= address && !pause_();
            top_->s_axi_control_rready = reading_ && !pause_();
            settle();
            const bool ar = top_->s_axi_control_arvalid && top_->s_axi_control_arready;
            const bool r = top_->s_axi_control_rvalid && top_->s_axi_control_rready;
            const unsigned response = top_->s_axi_control_rresp;
            value = top_->s_axi_control_rdata;
            clock();
            if (ar) address = top_->s_axi_control_arvalid = false;
            if (r) {
                reading_ = top_->s_axi_control_rready = false;
                return response;
            }
        }
        fail("AXI4-Lite: no answer to a read of register %#x", offset);
    }

    bool run(uint64_t cycles, uint64_t& passed) {
        for (passed = 0; passed < cycles; ++passed) {
            settle();
            const bool interrupt = top_->__SYM__interrupt;  // Verilator's name: a common C++ word
            if (interrupt) memory_.check_quiet();
            clock();
            if (interrupt) return true;
        }
        return false;
    }

    void cycle() {
        settle();
        clock();
    }

    void trace([[maybe_unused]] const char* path) {
#if VM_TRACE_FST
        top_->trace(&waveform, 99);
        waveform.open(path);
#else
        fail("built without waveforms");
#endif
    }

    Memory& memory() { return memory_; }

  private:
    void settle() {
        memory_.drive();
        top_->clk = 0;
        evaluate();
        memory_.sample();
        if (!now) return;
        if (top_->s_axi_control_bvalid && !writing_) fail("AXI4-Lite: B without a write");
        if (top_->s_axi_control_rvalid && !reading_) fail("AXI4-Lite: R without a read");
        b_.taken(top_->s_axi_control_bvalid, top_->s_axi_control_bready,
                 top_->s_axi_control_bresp);
        r_.taken(top_->s_axi_control_rvalid, top_->s_axi_control_rready,
                 uint64_t(top_->s_axi_control_rdata) << 2 | top_->s_axi_control_rresp);
    }
    void clock() {
        const bool r = top_->m_axi_rvalid && top_->m_axi_rready;
        const bool b = top_->m_axi_bvalid && top_->m_axi_bready;
        top_->clk = 1;
        evaluate();
        memory_.finish(r, b);
        ++now;
    }
    void evaluate() {
        top_->eval();
        context_.timeInc(1);
#if VM_TRACE_FST
        if (waveform.isOpen()) waveform.dump(context_.time());
#endif
    }
    VerilatedContext& prepared() {
#if VM_TRACE_FST
        context_.traceEverOn(true);
#endif
        return context_;
    }

    VerilatedContext context_;
    std::unique_ptr<Vsat> top_{new Vsat{&prepared()}};
    Memory memory_;
    Random random_;
    Pauses pause_;
    Watch<unsigned> b_{"AXI4-Lite B"};
    Watch<uint64_t> r_{"AXI4-Lite R"};
    bool writing_ = false, reading_ = false;  // the chip owes an answer
};

Options parse(int argc, char** argv) {
    Options options;
    for (int n = 2; n + 1 < argc; n += 2) {
        const std::string name = argv[n];
        const char* value = argv[n + 1];
        const uint64_t number = std::strtoull(value, nullptr, 0);
        if (name == "--read-latency") options.read_latency = number;
        else if (name == "--write-latency") options.write_latency = number;
        else if (name == "--outstanding") options.outstanding = number;
        else if (name == "--jitter") options.jitter = number;
        else if (name == "--seed") options.seed = number;
        else if (name == "--bandwidth") options.bandwidth = std::strtod(value, nullptr);
        else if (name == "--stall") options.stall = std::strtod(value, nullptr);
        else fail("unknown option %s", name.c_str());
    }
    return options;
}

std::vector<Fault> parse_faults(std::istringstream& words) {
    std::vector<Fault> faults;
    Fault fault{};
    for (std::string kind; words >> fault.first >> fault.end >> fault.response >> kind;) {
        fault.write = kind == "write";
        faults.push_back(fault);
    }
    return faults;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2 || argc % 2) fail("usage: MEMORY [--OPTION VALUE]...");
    Bench bench(argv[1], parse(argc, argv));
    for (std::string line, command; std::getline(std::cin, line);) {
        std::istringstream words(line);
        uint64_t first = 0, second = 0;
        words >> command;
        std::ostringstream answer;
        if (command == "quit") break;
        if (command == "write" && words >> first >> second) {
            const unsigned response = bench.write(first, second);
            if (response) answer << "response " << response;
            else answer << "ok";
        } else if (command == "read" && words >> first) {
            uint32_t value = 0;
            const unsigned response = bench.read(first, value);
            if (response) answer << "response " << response;
            else answer << value;
        } else if (command == "run" && words >> first) {
            answer << (bench.run(first, second) ? "interrupt " : "timeout ") << second;
        } else if (command == "idle" && words >> first) {
            while (first--) bench.cycle();
            answer << "ok";
        } else if (command == "cycles") {
            answer << now;
        } else if (command == "stats") {
            const Stats& s = bench.memory().stats();
            answer << s.read_beats << ' ' << s.write_beats << ' ' << s.read_bursts << ' '
                   << s.write_bursts << ' ' << s.most_reads << ' ' << s.most_writes << ' '
                   << s.read_held;
        } else if (command == "faults") {
            bench.memory().faults = parse_faults(words);
            answer << "ok";
        } else if (command == "trace") {
            bench.trace(line.substr(line.find(' ') + 1).c_str());
            answer << "ok";
        } else {
            fail("no such command: %s", line.c_str());
        }
        std::cout << answer.str() << std::endl;
    }
    return 0;
}
