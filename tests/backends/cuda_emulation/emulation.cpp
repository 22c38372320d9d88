#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cuda_runtime.h"

constexpr size_t kSharedBytes = 128 * 1024;
constexpr size_t kStackBytes = 64 * 1024;

namespace smoothloss {
namespace cuda {
alignas(16) thread_local unsigned char memory[kSharedBytes];  // the kernels' dynamic shared memory
}
}  // namespace smoothloss

// Those who see only the declaration of a thread_local call its initialisation, which a plain array does not have.
extern "C" void initialise_memory() __asm__("_ZTHN10smoothloss4cuda6memoryE");
void initialise_memory() {}

namespace emulation {
namespace {

constexpr unsigned kMaxThreads = 1024;
std::atomic<int64_t> num_launches{0};

struct Barrier {
    unsigned arrived = 0;
    unsigned generation = 0;

    // Returns what wait() needs.
    unsigned arrive(unsigned expected) {
        unsigned before = generation;
        if (++arrived == expected) {
            arrived = 0;
            ++generation;
        }
        return before;
    }
};

// Of the blocks, which are host threads.
struct Cluster {
    unsigned blocks;
    std::atomic<unsigned> arrived{0};
    std::atomic<unsigned> generation{0};
    std::vector<unsigned char*> shared;  // where each block's memory is
    std::atomic<bool> failed{false};

    explicit Cluster(unsigned count) : blocks(count), shared(count) {}

    void arrive() {
        if (++arrived == blocks) {
            arrived = 0;
            ++generation;
        }
    }
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStackBytes]};
    bool done = false;
    unsigned cluster_generation = 0;
    unsigned exchanges = 0;
};

struct Warp {
    Barrier barrier;
    alignas(16) unsigned char values[2][kWarp][16];  // two in turn: nobody can be two exchanges ahead
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Barrier barrier;
    Barrier cluster_arrivals;  // of the threads of this block: the last one tells the cluster
    Cluster* cluster;
    unsigned rank;
    unsigned current = 0;
    bool progress = false;
    const std::function<void()>* thread;
    ucontext_t scheduler;

    Block(unsigned threads, Cluster* c, unsigned r, const std::function<void()>* t)
        : fibers(threads), warps(threads / kWarp), cluster(c), rank(r), thread(t) {}

    void yield() { swapcontext(&fibers[current].context, &scheduler); }

    void wait(const Barrier& barrier, unsigned before) {
        while (barrier.generation == before) yield();
        progress = true;
    }

    void arrive_and_wait(Barrier& barrier, unsigned expected) {
        progress = true;
        wait(barrier, barrier.arrive(expected));
    }
};

thread_local Block* block = nullptr;

void run_fiber() {
    (*block->thread)();
    block->fibers[block->current].done = true;
    block->progress = true;
    block->yield();
}

void start(Fiber& fiber) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
}

// EMULATION_ORDER: a missing barrier shows in one order of the threads or another.
std::vector<unsigned> order_of_threads(unsigned count) {
    std::vector<unsigned> order(count);
    std::iota(order.begin(), order.end(), 0u);
    const char* wanted = std::getenv("EMULATION_ORDER");
    std::string name = wanted ? wanted : "forward";
    if (name == "reverse") std::reverse(order.begin(), order.end());
    if (name == "shuffled") std::shuffle(order.begin(), order.end(), std::mt19937(count));
    return order;
}

// Runs every thread from barrier to barrier, in turns. False where they wait for each other for ever.
bool run_to_the_end(Block& b, const std::vector<unsigned>& order) {
    auto last_progress = std::chrono::steady_clock::now();
    for (size_t left = order.size(); left > 0;) {
        b.progress = false;
        for (unsigned t : order) {
            if (b.fibers[t].done) continue;
            b.current = t;
            threadIdx = {t, 0, 0};
            swapcontext(&b.scheduler, &b.fibers[t].context);
            left -= b.fibers[t].done;
        }
        auto now = std::chrono::steady_clock::now();
        if (b.progress) last_progress = now;
        // Another block of the cluster may need its time.
        if (!b.progress &&
            (b.cluster->blocks == 1 || b.cluster->failed || now - last_progress > std::chrono::seconds(20)))
            return false;
        if (!b.progress) std::this_thread::yield();
    }
    return true;
}

void run_block(const cudaLaunchConfig_t& config, unsigned index, Cluster& cluster, unsigned rank,
               const std::function<void()>& thread) {
    std::memset(smoothloss::cuda::memory, 0xff, kSharedBytes);  // NaN: nothing may rely on what was there
    Block b(config.blockDim.x, &cluster, rank, &thread);
    block = &b;
    blockIdx = {index, 0, 0};
    blockDim = {config.blockDim.x, 1, 1};
    for (Fiber& fiber : b.fibers) start(fiber);
    if (!run_to_the_end(b, order_of_threads(config.blockDim.x))) cluster.failed = true;
    for (size_t i = config.dynamicSmemBytes; i < kSharedBytes; ++i) {
        if (smoothloss::cuda::memory[i] != 0xff) cluster.failed = true;  // beyond what was asked for
    }
}

}  // namespace

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
    unsigned blocks = config.numAttrs ? config.attrs->val.clusterDim.x : 1;
    if (config.dynamicSmemBytes > kSharedBytes || config.blockDim.x > kMaxThreads || config.gridDim.x % blocks != 0)
        return cudaErrorInvalidValue;
    ++num_launches;
    for (unsigned first = 0; first < config.gridDim.x; first += blocks) {
        Cluster cluster(blocks);
        std::atomic<unsigned> ready{0}, finished{0};
        std::vector<std::thread> threads;
        for (unsigned rank = 0; rank < blocks; ++rank) {
            threads.emplace_back([&, rank] {
                cluster.shared[rank] = smoothloss::cuda::memory;
                ++ready;
                while (ready < blocks) std::this_thread::yield();
                run_block(config, first + rank, cluster, rank, thread);
                ++finished;
                while (finished < blocks) std::this_thread::yield();  // shared memory lives as long as the cluster
            });
        }
        for (std::thread& each : threads) each.join();
        if (cluster.failed) return cudaErrorLaunchFailure;
    }
    return cudaSuccess;
}

void synchronize_block() {
    block->arrive_and_wait(block->barrier, static_cast<unsigned>(block->fibers.size()));
}

unsigned lane() {
    return threadIdx.x % kWarp;
}

namespace {

// What the lanes of this thread's warp hand out, once all of them have.
auto& hand_out(const void* value, size_t size) {
    Warp& warp = block->warps[threadIdx.x / kWarp];
    auto& values = warp.values[block->fibers[block->current].exchanges++ % 2];
    std::memcpy(values[lane()], value, size);
    block->arrive_and_wait(warp.barrier, kWarp);
    return values;
}

}  // namespace

void exchange(void* value, size_t size, unsigned source) {
    std::memcpy(value, hand_out(value, size)[source], size);
}

unsigned ballot(bool predicate) {
    auto& said = hand_out(&predicate, sizeof(predicate));
    unsigned bits = 0;
    for (unsigned l = 0; l < kWarp; ++l) bits |= static_cast<unsigned>(said[l][0] != 0) << l;
    return bits;
}

void arrive_at_cluster() {
    Fiber& fiber = block->fibers[block->current];
    fiber.cluster_generation = block->cluster->generation;
    unsigned before = block->cluster_arrivals.arrive(static_cast<unsigned>(block->fibers.size()));
    if (block->cluster_arrivals.generation != before) block->cluster->arrive();
    block->progress = true;
}

void wait_for_cluster() {
    unsigned before = block->fibers[block->current].cluster_generation;
    while (block->cluster->generation == before) block->yield();
    block->progress = true;
}

unsigned cluster_rank() {
    return block->rank;
}

unsigned cluster_blocks() {
    return block->cluster->blocks;
}

// All thread_local memory of this library lies at the same distances in every thread.
void* in_block_of_cluster(void* shared, unsigned rank) {
    ptrdiff_t distance = static_cast<unsigned char*>(shared) - smoothloss::cuda::memory;
    return block->cluster->shared[rank] + distance;
}

// Device 0 has no clusters. On device 1 every row exceeds the cache, and shared memory is large; on device 2 it is
// small, so that already short rows take clusters of many blocks.
int attribute_of(cudaDeviceAttr attribute, int device) {
    switch (attribute) {
        case cudaDevAttrClusterLaunch:
            return device > 0;
        case cudaDevAttrMultiProcessorCount:
            return 4;
        case cudaDevAttrL2CacheSize:
            return 0;
        default:
            return device == 2 ? 9 * 1024 : 96 * 1024;
    }
}

}  // namespace emulation

// How many kernels were launched since the library was loaded.
extern "C" __attribute__((visibility("default"))) int64_t emulated_launches() {
    return emulation::num_launches;
}

cudaError_t cudaSetDevice(int device) {
    return device >= 0 && device < 3 ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaGetLastError() {
    return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t error) {
    if (error == cudaErrorLaunchFailure) return "threads wait for each other, or shared memory was overrun";
    return error == cudaSuccess ? "no error" : "invalid argument";
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    *value = emulation::attribute_of(attribute, device);
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t*) {
    *clusters = 1;
    return cudaSuccess;
}
