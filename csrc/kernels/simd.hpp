// Vectors of one instruction set, the one that this translation unit is compiled for. Plain arithmetic
// is written with the compiler's vector extensions; only products of bytes need intrinsics.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define TERSOR_WIDTH 64
#elif defined(__AVX2__)
#define TERSOR_WIDTH 32
#else
#define TERSOR_WIDTH 16
#endif

namespace TERSOR_TARGET {

template <class T, int count>
struct VectorOf {
    typedef T type __attribute__((vector_size(count * sizeof(T))));
};
template <class T, int count>
using Vector = typename VectorOf<T, count>::type;

constexpr int WIDTH = TERSOR_WIDTH;  // bytes of a register
using Bytes = Vector<uint8_t, WIDTH>;
using Words = Vector<int16_t, WIDTH / 2>;
using Ints = Vector<int32_t, WIDTH / 4>;
using Floats = Vector<float, WIDTH / 4>;

template <class V>
inline V load(const void* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}
template <class V>
inline void store(void* to, const V& v) {
    std::memcpy(to, &v, sizeof v);
}

// The same four signed bytes in every lane of 32 bits.
inline Bytes splat4(const int8_t* four) {
    int32_t bits;
    std::memcpy(&bits, four, 4);
    return (Bytes)(bits - Ints{});
}

// Every byte moved right, with zeros from the left.
template <int bits>
inline Bytes shifted(Bytes v) {
    using Halves = Vector<uint16_t, WIDTH / 2>;
    return (Bytes)((Halves)v >> bits);  // what crosses from the neighbour is masked by the caller
}

// Partial: sums of products of four unsigned (at most 15) and four signed bytes, in each lane of 32 bits.
// Takes 8 additions of codes up to 15, or 32 of codes up to 3, before it must be flushed.
#if TERSOR_WIDTH == 64
using Partial = Ints;
inline void multiply_add(Partial& sum, Bytes codes, Bytes x) {
    sum = (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)x);
}
inline void flush(Ints& sum, Partial part) { sum += part; }
#elif TERSOR_WIDTH == 32
using Partial = Words;
inline void multiply_add(Partial& sum, Bytes codes, Bytes x) {
    sum += (Words)_mm256_maddubs_epi16((__m256i)codes, (__m256i)x);
}
inline void flush(Ints& sum, Partial part) {
    sum += (Ints)_mm256_madd_epi16((__m256i)part, _mm256_set1_epi16(1));
}
#elif defined(__ARM_NEON)
using Partial = Ints;
inline void multiply_add(Partial& sum, Bytes codes, Bytes x) {
    const int8x16_t a = (int8x16_t)codes, b = (int8x16_t)x;
#if defined(__ARM_FEATURE_DOTPROD)
    sum = (Ints)vdotq_s32((int32x4_t)sum, a, b);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
    const int16x8_t high = vmull_s8(vget_high_s8(a), vget_high_s8(b));
    sum = (Ints)vpadalq_s16((int32x4_t)sum, vpaddq_s16(low, high));
#endif
}
inline void flush(Ints& sum, Partial part) { sum += part; }
#else
using Partial = Ints;
inline void multiply_add(Partial& sum, Bytes codes, Bytes x) {
    for (int i = 0; i < WIDTH; ++i) sum[i / 4] += codes[i] * static_cast<int8_t>(x[i]);
}
inline void flush(Ints& sum, Partial part) { sum += part; }
#endif

}  // namespace TERSOR_TARGET
