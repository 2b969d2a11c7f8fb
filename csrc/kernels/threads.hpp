// Threads and memory of the kernels. Threads live as long as a call: nothing is left for a fork to break.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace tersor {

// Calls work(job, slot) for each job below `jobs`; slots below `threads` tell the threads apart.
template <class Work>
void parallel(int64_t jobs, int64_t threads, const Work& work) {
    threads = threads < jobs ? threads : jobs;
    if (threads <= 1) {
        for (int64_t job = 0; job < jobs; ++job) work(job, int64_t{0});
        return;
    }
    std::atomic<int64_t> next{0};
    const auto run = [&](int64_t slot) {
        for (int64_t job; (job = next++) < jobs;) work(job, slot);
    };
    std::vector<std::thread> others;
    try {
        for (int64_t slot = 1; slot < threads; ++slot) others.emplace_back(run, slot);
    } catch (const std::system_error&) {
        // The system has no more threads: those that there are do the work.
    }
    run(0);
    for (std::thread& other : others) other.join();
}

// Memory that a thread keeps from call to call.
class Workspace {
public:
    Workspace() = default;
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    ~Workspace() { std::free(memory_); }

    char* of(int64_t bytes) {
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
