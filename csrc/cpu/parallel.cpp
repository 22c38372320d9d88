#include "cpu/parallel.h"

#include <cstring>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__) || defined(__APPLE__)
#include <dlfcn.h>
#endif
#ifdef __linux__
#include <link.h>
#endif

namespace smoothloss {
namespace {

// What compilers make of `#pragma omp parallel num_threads(threads)`: function(data) is called by each thread, this one
// among them. The libraries of GCC, LLVM and Intel have it.
using OpenMp = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

#ifdef __linux__

// Adds the path of a library that is loaded, if it is one of OpenMP.
int add_openmp(dl_phdr_info* library, size_t, void* paths) {
    const char* path = library->dlpi_name ? library->dlpi_name : "";
    const char* slash = std::strrchr(path, '/');
    const char* name = slash ? slash + 1 : path;
    for (const char* begin : {"libgomp", "libomp", "libiomp"}) {
        if (std::strncmp(name, begin, std::strlen(begin)) == 0) {
            static_cast<std::vector<std::string>*>(paths)->push_back(path);
        }
    }
    return 0;
}

// Modules of Python keep what they load to themselves, so that a library may be there and not be seen by dlsym().
void* find_in_libraries(const char* symbol) {
    std::vector<std::string> paths;
    dl_iterate_phdr(add_openmp, &paths);
    for (const std::string& path : paths) {
        void* library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
        void* found = library ? dlsym(library, symbol) : nullptr;
        if (found) return found;  // and the library stays
        if (library) dlclose(library);
    }
    return nullptr;
}

#elif defined(__APPLE__)

void* find_in_libraries(const char*) {
    return nullptr;
}

#endif

#if defined(__linux__) || defined(__APPLE__)
OpenMp find_openmp() {
    constexpr const char* kSymbol = "GOMP_parallel";
    void* found = dlsym(RTLD_DEFAULT, kSymbol);
    if (!found) found = find_in_libraries(kSymbol);
    return reinterpret_cast<OpenMp>(found);
}
#else
OpenMp find_openmp() {
    return nullptr;
}
#endif

OpenMp openmp() {
    static const OpenMp found = find_openmp();
    return found;
}

// Each thread that comes is the next worker.
struct Team {
    void (*task)(void*, int);
    void* context;
    std::atomic<int> come;

    static void join(void* team) {
        Team& mine = *static_cast<Team*>(team);
        mine.task(mine.context, mine.come.fetch_add(1, std::memory_order_relaxed));
    }
};

// Threads are started for each call: tens of microseconds.
void start_threads(int workers, Team& team) {
    std::vector<std::thread> others;
    try {
        for (int worker = 1; worker < workers; ++worker) others.emplace_back(Team::join, &team);
    } catch (const std::system_error&) {
        // The system gives no more threads. Those that are there take all chunks.
    }
    Team::join(&team);
    for (std::thread& other : others) other.join();
}

}  // namespace

bool has_openmp() {
    return openmp() != nullptr;
}

void run_workers(int workers, void (*task)(void*, int), void* context) {
    if (workers <= 1) return task(context, 0);
    Team team{task, context, {0}};
    if (!has_openmp()) return start_threads(workers, team);
    openmp()(Team::join, &team, static_cast<unsigned>(workers), 0);
}

}  // namespace smoothloss
