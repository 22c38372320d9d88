// What this machine's processor can do.
#pragma once

namespace smoothloss {

// Instructions that the processor has and whose registers the operating system saves.
struct Processor {
    bool avx2 = false;        // with fused multiply-add
    bool avx512 = false;      // F, BW, DQ and VL
    bool avx512bf16 = false;  // beside avx512
};

const Processor& processor();

// Whether this process may use AMX for bfloat16: Linux lends its registers to a process that
// asks, and this asks.
bool may_use_amx();

}  // namespace smoothloss
