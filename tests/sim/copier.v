// Stands in for the chip where the harness itself is tested: copies scalar0 bursts of scalar1 beats
// from base0 to base1. First it reads all, then it writes all. scalar2 chooses a defect.
module sat(
  input clk, input rst, output interrupt,
  input s_axi_control_awvalid, output s_axi_control_awready, input [11:0] s_axi_control_awaddr,
  input [2:0] s_axi_control_awprot,
  input s_axi_control_wvalid, output s_axi_control_wready, input [31:0] s_axi_control_wdata,
  input [3:0] s_axi_control_wstrb,
  output s_axi_control_bvalid, input s_axi_control_bready, output [1:0] s_axi_control_bresp,
  input s_axi_control_arvalid, output s_axi_control_arready, input [11:0] s_axi_control_araddr,
  input [2:0] s_axi_control_arprot,
  output s_axi_control_rvalid, input s_axi_control_rready, output [31:0] s_axi_control_rdata,
  output [1:0] s_axi_control_rresp,
  output m_axi_arvalid, input m_axi_arready, output [63:0] m_axi_araddr, output m_axi_arid,
  output [7:0] m_axi_arlen, output [2:0] m_axi_arsize, output [1:0] m_axi_arburst,
  input m_axi_rvalid, output m_axi_rready, input [511:0] m_axi_rdata, input m_axi_rid,
  input [1:0] m_axi_rresp, input m_axi_rlast,
  output m_axi_awvalid, input m_axi_awready, output [63:0] m_axi_awaddr, output m_axi_awid,
  output [7:0] m_axi_awlen, output [2:0] m_axi_awsize, output [1:0] m_axi_awburst,
  output m_axi_wvalid, input m_axi_wready, output [511:0] m_axi_wdata,
  output [63:0] m_axi_wstrb, output m_axi_wlast,
  input m_axi_bvalid, output m_axi_bready, input m_axi_bid, input [1:0] m_axi_bresp
);
  localparam AT_RESET = 0;  // valid in reset
  localparam AR_PAYLOAD = 1, AR_VALID = 2, AW_PAYLOAD = 3, AW_VALID = 4, W_PAYLOAD = 5, W_VALID = 6,
    LONG = 7, FIXED = 8, WIDE = 9, LAST_EARLY = 10, LAST_LATE = 11, STROBE = 12, AW_ID = 13,
    DONE_BEFORE_B = 14, DONE_BEFORE_R = 15, LITE_B = 16, LITE_R_PAYLOAD = 17, LITE_R_VALID = 18,
    LITE_SILENT = 19, HANG = 20;
  localparam CONTROL = 0, GLOBAL = 1, ENABLE = 2, PENDING = 3, STATUS = 7;  // of 32 bits each

  reg [31:0] registers [0:1023];
  reg [31:0] bursts, beats, defect;
  reg [63:0] from, to;
  reg [511:0] data [0:1023];
  reg reading, writing, done, idle, ar_waited, aw_waited, w_waited;
  reg [31:0] ar_count, r_count, aw_count, w_count, w_beat, b_count;
  reg [7:0] error;

  // Memory side.
  assign m_axi_arvalid = reading && ar_count < bursts && !(defect == AR_VALID && ar_waited)
                         || AT_RESET && rst;
  assign m_axi_araddr = from + 64 * beats * ar_count + (defect == AR_PAYLOAD && ar_waited ? 64 : 0);
  assign m_axi_arid = 1;
  assign m_axi_arlen = defect == LONG ? 16 : beats - 1;
  assign m_axi_arsize = defect == WIDE ? 7 : 6;
  assign m_axi_arburst = defect != FIXED;
  assign m_axi_rready = 1;
  assign m_axi_awvalid = writing && aw_count < bursts && !(defect == AW_VALID && aw_waited);
  assign m_axi_awaddr = to + 64 * beats * aw_count;
  assign m_axi_awid = defect == AW_ID;
  assign m_axi_awlen = beats - 1 + (defect == AW_PAYLOAD && aw_waited);
  assign m_axi_awsize = defect == STROBE ? 5 : 6;
  assign m_axi_awburst = 1;
  assign m_axi_wvalid = writing && w_count < bursts * beats && !(defect == W_VALID && w_waited);
  assign m_axi_wdata = data[w_count] ^ (defect == W_PAYLOAD && w_waited);
  assign m_axi_wstrb = ~64'd0;
  assign m_axi_wlast = w_beat == beats - 1 && defect != LAST_LATE
                       || w_beat == beats - 2 && defect == LAST_EARLY;
  assign m_axi_bready = 1;

  // Host side: one access at a time.
  reg b, r, r_waited;
  wire write = s_axi_control_awvalid && s_axi_control_wvalid && !b;
  reg [31:0] answer;
  assign s_axi_control_awready = write;
  assign s_axi_control_wready = write;
  assign s_axi_control_bvalid = b || defect == LITE_B && !writing && !reading;
  assign s_axi_control_bresp = 0;
  assign s_axi_control_arready = s_axi_control_arvalid && !r;
  assign s_axi_control_rvalid = r && defect != LITE_SILENT
                                && !(defect == LITE_R_VALID && r_waited);
  assign s_axi_control_rdata = answer ^ (defect == LITE_R_PAYLOAD && r_waited);
  assign s_axi_control_rresp = 0;
  assign interrupt = registers[GLOBAL][0] && |(registers[ENABLE] & registers[PENDING]);

  wire finished = writing && b_count == bursts && defect != HANG
                  || defect == DONE_BEFORE_B && writing && w_count == bursts * beats
                  || defect == DONE_BEFORE_R && reading && ar_count == bursts;
  wire [9:0] offset = s_axi_control_awaddr[11:2];
  wire [31:0] value = s_axi_control_wdata;

  always @(posedge clk) begin
    ar_waited <= m_axi_arvalid && !m_axi_arready;
    aw_waited <= m_axi_awvalid && !m_axi_awready;
    w_waited <= m_axi_wvalid && !m_axi_wready;
    r_waited <= s_axi_control_rvalid && !s_axi_control_rready;
    if (m_axi_arvalid && m_axi_arready) ar_count <= ar_count + 1;
    if (m_axi_awvalid && m_axi_awready) aw_count <= aw_count + 1;
    if (m_axi_wvalid && m_axi_wready) begin
      w_count <= w_count + 1;
      w_beat <= w_beat == beats - 1 ? 0 : w_beat + 1;
    end
    if (m_axi_bvalid) begin
      b_count <= b_count + 1;
      if (m_axi_bresp[1]) error <= 6 + m_axi_bresp;
    end
    if (m_axi_rvalid) begin
      data[r_count] <= m_axi_rdata;
      r_count <= r_count + 1;
      if (m_axi_rresp[1]) error <= 4 + m_axi_rresp;
    end
    if (reading && r_count == bursts * beats) begin
      reading <= 0;
      writing <= error == 0;
      done <= error != 0;
    end
    if (finished) begin
      {reading, writing} <= 0;
      done <= 1;
    end
    if (done && !idle) begin
      idle <= 1;
      registers[PENDING] <= 1;
    end

    if (write) b <= 1;
    if (b && s_axi_control_bready) b <= 0;
    if (write && offset == PENDING) registers[PENDING] <= registers[PENDING] ^ value;
    else if (write && offset != CONTROL) registers[offset] <= value;
    if (write && offset == 16) from <= value;
    if (write && offset == 18) to <= value;
    if (write && offset == 32) bursts <= value;
    if (write && offset == 33) beats <= value;
    if (write && offset == 34) defect <= value;
    if (write && offset == CONTROL && value[0]) begin
      {ar_count, r_count, aw_count, w_count, w_beat, b_count} <= 0;
      {done, idle, error} <= 0;
      reading <= 1;
    end
    if (s_axi_control_arready) begin
      r <= 1;
      case (s_axi_control_araddr[11:2])
        CONTROL: answer <= {29'd0, idle, done, 1'b0};
        STATUS: answer <= {16'd0, error, 8'd0};
        default: answer <= registers[s_axi_control_araddr[11:2]];
      endcase
    end
    if (s_axi_control_rvalid && s_axi_control_rready) r <= 0;

    if (rst) begin
      {reading, writing, done, b, r, error, bursts, beats, defect} <= 0;
      {registers[GLOBAL], registers[ENABLE], registers[PENDING]} <= 0;
      idle <= 1;
    end
  end
endmodule
