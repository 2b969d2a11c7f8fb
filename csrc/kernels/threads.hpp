// SPDX-License-Identifier: Apache-2.0
// Threads and memory of the kernels.
#pragma once

#if defined(__linux__)
#include <dlfcn.h>
#include <pthread.h>
#endif

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace tersor {

// GNU's OpenMP, if torch has loaded it: found by name, as torch brings a copy of its own. Its threads wait
// already, and while they spin after an operator of torch's no others get their processors.
struct OpenMp {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
    int (*thread)() = nullptr;
};

inline OpenMp& openmp() {
    static OpenMp found = [] {
        OpenMp symbols;
#if defined(__linux__)
        symbols.parallel = reinterpret_cast<decltype(symbols.parallel)>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
        symbols.thread = reinterpret_cast<decltype(symbols.thread)>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
        // The threads do not outlive a fork, and the child would wait for them for ever.
        pthread_atfork(nullptr, nullptr, [] { openmp() = OpenMp(); });
#endif
        return symbols.parallel && symbols.thread ? symbols : OpenMp();
    }();
    return found;
}

// Calls run(slot) in as many threads as there are, at most `threads`, with different slots below that.
template <class Run>
void everywhere(int64_t threads, const Run& run) {
    if (openmp().parallel) {
        const auto call = [](void* data) { (*static_cast<const Run*>(data))(openmp().thread()); };
        openmp().parallel(call, const_cast<Run*>(&run), static_cast<unsigned>(threads), 0);
        return;
    }
    std::vector<std::thread> others;
    try {
        for (int64_t slot = 1; slot < threads; ++slot) others.emplace_back(run, slot);
    } catch (const std::system_error&) {
        // The system has no more threads: those that there are do the work.
    }
    run(0);
    for (std::thread& other : others) other.join();
}

// Calls work(job, slot) for each job below `jobs`; slots below `threads` tell the threads apart.
template <class Work>
void parallel(int64_t jobs, int64_t threads, const Work& work) {
    threads = threads < jobs ? threads : jobs;
    if (threads <= 1) {
        for (int64_t job = 0; job < jobs; ++job) work(job, int64_t{0});
        return;
    }
    std::atomic<int64_t> next{0};
    everywhere(threads, [&](int64_t slot) {
        for (int64_t job; (job = next++) < jobs;) work(job, slot);
    });
}

// Memory that a thread keeps from call to call.
class Workspace {
public:
    Workspace() = default;
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    ~Workspace() { std::free(memory_); }

    char* of(int64_t bytes) {
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
        size_ = -1;  // exactly as much memory each time, so that what goes beyond is found
#endif
        if (bytes > size_) {
            std::free(memory_);
            size_ = 0;
            memory_ = static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
            if (!memory_) throw std::bad_alloc();
            size_ = bytes;
        }
        return memory_;
    }

private:
    char* memory_ = nullptr;
    int64_t size_ = 0;
};

}  // namespace tersor
