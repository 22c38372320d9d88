#include "cpu/huge_pages.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace smoothloss {

void prefer_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t kHugePage = uintptr_t{1} << 21;
    uintptr_t begin = reinterpret_cast<uintptr_t>(data);
    uintptr_t end = (begin + static_cast<uintptr_t>(bytes)) & ~(kHugePage - 1);
    begin = (begin + kHugePage - 1) & ~(kHugePage - 1);
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)data;
    (void)bytes;
#endif
}

}  // namespace smoothloss
