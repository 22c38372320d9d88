// One warp per position: its candidates, merged, with their rows of the similarity table.
#include "common/candidates.h"
#include "cuda/launch.cuh"
#include "cuda/sparse_cross_entropy.h"

namespace smoothloss {
namespace cuda {
namespace {

constexpr unsigned kWarps = 8;  // a block

// Each lane holds one of 32 candidates; all lanes write the slots of each.
__global__ void __launch_bounds__(32 * kWarps, 4) smoothed_target_kernel(SmoothedTargetArguments a) {
    int64_t position = static_cast<int64_t>(blockIdx.x) * kWarps + warp_id();
    if (position >= a.batch * a.length) return;
    // In 32 bits, to which the launcher holds it: a division in 64 is a call.
    int64_t sequence = static_cast<uint32_t>(position) / static_cast<uint32_t>(a.length);
    int64_t each = a.num_neighbours + 1;
    int64_t begin = position * a.num_candidates * each;
    float tail = 0;
    for (int64_t first = 0; first < a.num_candidates; first += 32) {
        int64_t rest = a.num_candidates - first;
        int filled = static_cast<int>(rest < 32 ? rest : 32);
        Candidate own{-1, 0};
        if (lane_id() < filled) own = merged_candidate(a, first + lane_id(), position, sequence);
        tail += candidate_tail(a, own);
        for (int c = 0; c < filled; ++c) {
            Candidate candidate{__shfl_sync(kAllLanes, own.token, c), __shfl_sync(kAllLanes, own.weight, c)};
            for (int64_t k = lane_id(); k < each; k += 32) {
                Slot slot = candidate_slot(a, candidate, k);
                int64_t at = begin + (first + c) * each + k;
                a.out_indices[at] = slot.index;
                a.out_weights[at] = slot.weight;
            }
        }
    }
    tail = warp_sum(tail);
    if (a.out_uniform && lane_id() == 0) a.out_uniform[position] = tail;
}

}  // namespace

int smoothed_target(const SmoothedTargetArguments& a, int device, void* stream) {
    int error = cudaSetDevice(device);
    if (error != cudaSuccess) return error;
    if (a.batch * a.length > INT32_MAX) return cudaErrorInvalidValue;
    int64_t blocks = (a.batch * a.length + kWarps - 1) / kWarps;
    return launch(smoothed_target_kernel, a, {blocks, 32 * kWarps, 0, 0}, stream);
}

}  // namespace cuda
}  // namespace smoothloss
