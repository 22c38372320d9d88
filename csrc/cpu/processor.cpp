#include "cpu/processor.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace smoothloss {
namespace {

#if defined(__x86_64__)

struct Registers {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

// All zeros where the processor does not have the leaf.
Registers cpuid(unsigned leaf, unsigned part) {
    Registers r;
    __get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d);
    return r;
}

bool has(unsigned bits, int bit) {
    return bits >> bit & 1;
}

// The registers that the operating system saves. To be called only where it has said that it saves any.
unsigned saved_registers() {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

// Not __builtin_cpu_supports, which needs a library that is not linked on Windows.
Processor detect() {
    constexpr unsigned kSavesAvx = 0x6, kSavesAvx512 = 0xe6;
    Registers basic = cpuid(1, 0), extended = cpuid(7, 0), more = cpuid(7, 1);
    unsigned saved = has(basic.c, 27) ? saved_registers() : 0;
    Processor p;
    p.avx2 = (saved & kSavesAvx) == kSavesAvx && has(extended.b, 5) && has(basic.c, 12);
    p.avx512 = p.avx2 && (saved & kSavesAvx512) == kSavesAvx512 && has(extended.b, 16) && has(extended.b, 17) &&
               has(extended.b, 30) && has(extended.b, 31);
    p.avx512bf16 = p.avx512 && has(more.a, 5);
    return p;
}

bool ask_for_amx() {
#if defined(__linux__)
    constexpr unsigned kSavesTiles = 0x60000;
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl
    unsigned bits = cpuid(7, 0).d;
    bool is_there = has(bits, 22) && has(bits, 24) && has(cpuid(1, 0).c, 27);
    return is_there && (saved_registers() & kSavesTiles) == kSavesTiles &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

#else

bool ask_for_amx() {
    return false;
}

Processor detect() {
    return {};
}

#endif

}  // namespace

const Processor& processor() {
    static const Processor found = detect();
    return found;
}

bool may_use_amx() {
    static const bool granted = ask_for_amx();
    return granted;
}

}  // namespace smoothloss
