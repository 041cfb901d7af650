// What the kernels of this library share: paths by instruction set, bfloat16, prefetching, and threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define HRM_EXPORT extern "C" __attribute__((visibility("default")))

enum Path { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

inline bool has(int path) {
    if (path == kPortable) return true;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (path == kAvx2) return avx2;
    if (path == kAvx512) return avx512;
    if (path == kAvx512Bf16) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
    return false;
}

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Keeps a value that is used several times in a register, where the compiler would load it again for each use.
#if defined(__x86_64__)
#define HRM_IN_REGISTER(value) asm("" : "+v"(value))
#else
#define HRM_IN_REGISTER(value)
#endif

// Rounds to nearest, ties to even; NaN stays NaN.
inline uint16_t bfloat16_of(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline float read(const void* from, int64_t at, bool is_bfloat16) {
    if (is_bfloat16) return float_of(static_cast<uint32_t>(static_cast<const uint16_t*>(from)[at]) << 16);
    return static_cast<const float*>(from)[at];
}

inline void write(void* to, int64_t at, bool is_bfloat16, float value) {
    if (is_bfloat16)
        static_cast<uint16_t*>(to)[at] = bfloat16_of(value);
    else
        static_cast<float*>(to)[at] = value;
}

// Requests the cache lines of [from, from + bytes); a request beyond the buffer is ignored by the processor.
inline void prefetch(const char* from, int bytes) {
    for (int at = 0; at < bytes; at += 64) __builtin_prefetch(from + at);
}

// `GOMP_parallel` of the OpenMP runtime that torch runs on, where there is one: its threads are up already, and a second
// pool would compete with them for the cores. Set once, before any kernel runs.
using OpenMp = void (*)(void (*)(void*), void*, unsigned, unsigned);
extern OpenMp openmp_parallel;

// Calls work(worker) for workers 0, 1, ... in parallel, at most `num_workers` of them and at least one; `work` takes its
// share from a counter of its own, so it does not matter how many run.
template <class Work>
void run_parallel(int64_t num_workers, const Work& work) {
    struct Team {
        const Work& work;
        std::atomic<int64_t> next{0};
    } team{work};
    if (num_workers <= 1) return work(0);
    if (openmp_parallel != nullptr) {
        const auto enter = [](void* data) {
            Team& mine = *static_cast<Team*>(data);
            mine.work(mine.next.fetch_add(1, std::memory_order_relaxed));
        };
        return openmp_parallel(enter, &team, static_cast<unsigned>(num_workers), 0);
    }
    std::vector<std::thread> others;
    try {
        for (int64_t worker = 1; worker < num_workers; ++worker) others.emplace_back(work, worker);
    } catch (const std::system_error&) {
        // No more threads to be had: those that started, and this one, do the work.
    }
    work(0);
    for (std::thread& other : others) other.join();
}
