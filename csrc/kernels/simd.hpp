// SPDX-License-Identifier: Apache-2.0
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

// Every byte moved left, with zeros from the right.
template <int bits>
inline Bytes raised(Bytes v) {
    using Halves = Vector<uint16_t, WIDTH / 2>;
    return (Bytes)((Halves)v << bits);  // as above
}

// The two halves of each byte.
#if TERSOR_WIDTH >= 32
inline void halves(const uint8_t* from, __m256i& low, __m256i& high) {
    const __m256i mask = _mm256_set1_epi8(15);
    low = _mm256_and_si256(load<__m256i>(from), mask);
    // From memory again: that costs no instruction, but loading into a register does.
    __m256i above;
    asm("vpandn %1, %2, %0" : "=x"(above) : "m"(*(const uint8_t(*)[32])from), "x"(mask));
    high = _mm256_srli_epi16(above, 4);
}
#endif
inline void halves(const uint8_t* from, Bytes& low, Bytes& high) {
#if TERSOR_WIDTH == 32
    __m256i first, second;
    halves(from, first, second);
    low = (Bytes)first;
    high = (Bytes)second;
#else
    const auto both = load<Bytes>(from);
    low = both & 15;
    high = both >> 4;
#endif
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

// ---- tables of 16 signed bytes ----

using Sixteen = Vector<int16_t, 16>;

// Pairs of codes: the index of an entry in 4 bits, its magnitude in 3, its sign. Their products, added.
#if TERSOR_WIDTH == 64
struct Decoded {
    Bytes index, magnitude;
    __mmask64 negative;
};
inline Decoded decode(Bytes codes) { return {codes & 15, shifted<4>(codes) & 7, _mm512_movepi8_mask((__m512i)codes)}; }
inline Bytes repeat16(const int8_t* table) {
    return (Bytes)_mm512_maskz_broadcast_i32x4(0xffff, _mm_loadu_si128((const __m128i*)table));
}
inline Words products(Bytes table, const Decoded& codes) {
    const __m512i entry = _mm512_shuffle_epi8((__m512i)table, (__m512i)codes.index);
    const __m512i with_sign = _mm512_mask_sub_epi8(entry, codes.negative, __m512i{}, entry);
    return (Words)_mm512_maddubs_epi16((__m512i)codes.magnitude, with_sign);
}
#elif TERSOR_WIDTH == 32
struct Decoded {
    Bytes index, magnitude, sign;
};
inline Decoded decode(Bytes codes) { return {codes & 15, shifted<4>(codes) & 7, codes}; }
inline Bytes repeat16(const int8_t* table) {
    return (Bytes)_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
}
inline Words products(Bytes table, const Decoded& codes) {
    const __m256i entry = _mm256_shuffle_epi8((__m256i)table, (__m256i)codes.index);
    // A code of zero has no sign, and makes the entry zero, which its magnitude would do too.
    return (Words)_mm256_maddubs_epi16((__m256i)codes.magnitude, _mm256_sign_epi8(entry, (__m256i)codes.sign));
}
#else
using SignedBytes = Vector<int8_t, WIDTH>;
struct Decoded {
    Bytes index;
    SignedBytes value;
};
inline Decoded decode(Bytes codes) {
    const SignedBytes magnitude = (SignedBytes)(codes >> 4 & 7), negative = (SignedBytes)codes >> 7;
    return {codes & 15, (magnitude ^ negative) - negative};
}
inline Bytes repeat16(const int8_t* table) { return load<Bytes>(table); }
inline Bytes picked(Bytes table, Bytes index) {
#if defined(__aarch64__)
    return (Bytes)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)index);
#else
    Bytes result{};
    for (int i = 0; i < WIDTH; ++i) result[i] = table[index[i]];
    return result;
#endif
}
// Adds unsigned bytes, the first half and the second.
inline void add_bytes(Words& first, Words& second, Bytes bytes) {
#if defined(__aarch64__)
    first = (Words)vaddw_u8((uint16x8_t)first, vget_low_u8((uint8x16_t)bytes));
    second = (Words)vaddw_high_u8((uint16x8_t)second, (uint8x16_t)bytes);
#else
    for (int i = 0; i < WIDTH / 2; ++i) {
        first[i] = static_cast<int16_t>(first[i] + bytes[i]);
        second[i] = static_cast<int16_t>(second[i] + bytes[WIDTH / 2 + i]);
    }
#endif
}
inline Words products(Bytes table, const Decoded& codes) {
    const auto entry = (SignedBytes)picked(table, codes.index);
#if defined(__aarch64__)
    const int8x16_t a = (int8x16_t)entry, b = (int8x16_t)codes.value;
    return (Words)vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b));
#else
    Words result{};
    for (int i = 0; i < WIDTH / 2; ++i)
        result[i] = static_cast<int16_t>(entry[2 * i] * codes.value[2 * i] +
                                         entry[2 * i + 1] * codes.value[2 * i + 1]);
    return result;
#endif
}
#endif

// round(words * number / 2**15), for products whose magnitude is below 2**30.
inline Sixteen scaled(const Sixteen& words, int16_t number) {
#if TERSOR_WIDTH >= 32
    return (Sixteen)_mm256_mulhrs_epi16((__m256i)words, _mm256_set1_epi16(number));
#elif defined(__aarch64__)
    const auto half = [&](int i) { return vqrdmulhq_n_s16(load<int16x8_t>((const char*)&words + i), number); };
    const int16x8_t halves[2] = {half(0), half(16)};
    return load<Sixteen>(halves);
#else
    Sixteen result{};
    for (int i = 0; i < 16; ++i) result[i] = static_cast<int16_t>((words[i] * number + (1 << 14)) >> 15);
    return result;
#endif
}

}  // namespace TERSOR_TARGET
