// Memory that is about to be written for the first time.
#pragma once

#include <cstdint>

namespace smoothloss {

// A fresh large buffer is mapped page by page while it is written, which takes longer than writing it. Huge pages,
// where the system grants them on request, make that 512 times fewer faults. Advice only: any failure is harmless.
void prefer_huge_pages(void* data, int64_t bytes);

}  // namespace smoothloss
