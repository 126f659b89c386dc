/* Products of a few keypoints and all landmarks in bytes, for the processors there are.
 *
 * All kinds compute in whole numbers and give the same bytes: which one it is changes the time. */
#include <string.h>

#include "kernels.h"

/* MOST_GROUPS: of Keys.groups, as callers check. */
enum { FOUR_KEYS = 16, MOST_GROUPS = 256 };

/* Sums of the products of a query, repeated for each of four keys, and these: as loops of the form
 * that compilers make vectors of. The product of two bytes fits into 16 bits. */
INLINED void sum_products(const int16_t *restrict query, const int8_t *restrict four_keys,
                          int32_t groups, int32_t *restrict sums)
{
    for (int32_t i = 0; i < FOUR_KEYS; i++)
        sums[i] = 0;
    for (int32_t group = 0; group < groups; group++, query += FOUR_KEYS, four_keys += 2 * FOUR_KEYS)
#pragma omp simd
        for (int32_t i = 0; i < FOUR_KEYS; i++)
            sums[i] += (int16_t)(query[i] * four_keys[i]);
}

/* Plain C, for any processor. */
VECTORISED static void product_plain(const uint8_t *queries, const Keys *keys, uint8_t *bytes)
{
    const int64_t size = 4 * keys->groups;
    int16_t repeated[QUERIES * FOUR_KEYS * MOST_GROUPS];
    for (int64_t at = 0; at < QUERIES * keys->groups; at++)
        for (int32_t i = 0; i < FOUR_KEYS; i++)
            repeated[FOUR_KEYS * at + i] = (int16_t)(queries[4 * at + i % 4] - 128);
    for (int64_t first = 0; first < keys->stride; first += 4) {
        /* Eight keys lie interleaved, half of them are looked at. */
        const int8_t *four_keys = keys->packed + first / 8 * 8 * size + first % 8 * 4;
        for (int32_t row = 0; row < QUERIES; row++) {
            int32_t sums[FOUR_KEYS];
            sum_products(repeated + row * FOUR_KEYS * keys->groups, four_keys, keys->groups, sums);
            for (int32_t i = 0; i < 4; i++) {
                int32_t x = sums[4 * i] + sums[4 * i + 1] + sums[4 * i + 2] + sums[4 * i + 3];
                x >>= keys->shift;
                /* To 16 bits, times the factor, to a byte; what is negative becomes zero. */
                x = x > INT16_MAX ? INT16_MAX : x < INT16_MIN ? INT16_MIN : x;
                x = (x * keys->factor + (1 << 14)) >> 15;
                bytes[row * keys->stride + first + i] = (uint8_t)(x > 255 ? 255 : x < 0 ? 0 : x);
            }
        }
    }
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>

__attribute__((target("avx2"))) INLINED __m256i repeat_four(const void *bytes)
{
    int32_t four;
    memcpy(&four, bytes, 4);
    return _mm256_set1_epi32(four);
}

/* Write the bytes of sixteen sums. */
__attribute__((target("avx2"))) INLINED void store_bytes(__m256i left, __m256i right,
                                                         const Keys *keys, uint8_t *bytes)
{
    const __m128i factor = _mm_set1_epi16(keys->factor);
    const __m128i shift = _mm_cvtsi32_si128(keys->shift);
    /* To 16 bits, times the factor, to bytes; what is negative becomes zero. */
    const __m256i x = _mm256_sra_epi32(left, shift), y = _mm256_sra_epi32(right, shift);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x, y), 0xD8);
    const __m128i low = _mm_mulhrs_epi16(_mm256_castsi256_si128(words), factor);
    const __m128i high = _mm_mulhrs_epi16(_mm256_extracti128_si256(words, 1), factor);
    _mm_storeu_si128((__m128i *)bytes, _mm_packus_epi16(low, high));
}

/* As instructions: with their intrinsics, GCC copies every sum before it adds to it. */
#define NAME product_avx512_vnni
#define TARGET "avx2,avx512f,avx512vl"
#define DOT_PRODUCTS(sums, a, b) __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b))
#include "search_product.inc"
#undef NAME
#undef TARGET
#undef DOT_PRODUCTS

#define NAME product_avx_vnni
#define TARGET "avx2"
#define DOT_PRODUCTS(sums, a, b) __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(a), "x"(b))
#include "search_product.inc"

/* Compilers learnt its name late. */
static int has_avx_vnni(void)
{
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}

/* Four bytes of a query as 16-bit numbers, for four keys. */
__attribute__((target("avx2"))) INLINED __m256i repeat_wide(const int16_t *words)
{
    int64_t four;
    memcpy(&four, words, 8);
    return _mm256_set1_epi64x(four);
}

/* Without VNNI, products of bytes would saturate: they are widened to 16 bits, which is exact.
 *
 * Four rows and eight keys at a time. A key has two sums side by side, for its even and odd pairs. */
__attribute__((target("avx2"))) static void product_avx2(const uint8_t *queries, const Keys *keys,
                                                         uint8_t *bytes)
{
    const int64_t size = 4 * keys->groups;
    int16_t wide[QUERIES * 4 * MOST_GROUPS];
    for (int64_t i = 0; i < QUERIES * size; i++)
        wide[i] = queries[i];
    for (int64_t first = 0; first < keys->stride; first += 16)
        for (int32_t row = 0; row < QUERIES; row += 4) {
            __m256i found[2][4];
            for (int32_t half = 0; half < 2; half++) {
                const int8_t *key = keys->packed + (first + 8 * half) * size;
                const int16_t *q0 = wide + row * size, *q1 = q0 + size;
                const int16_t *q2 = q1 + size, *q3 = q2 + size;
                __m256i a0 = _mm256_setzero_si256(), a1 = a0, a2 = a0, a3 = a0;
                __m256i b0 = a0, b1 = a0, b2 = a0, b3 = a0;
#define ADD_PRODUCTS(left, right, query)                                                           \
    do {                                                                                           \
        const __m256i four = repeat_wide((query) + at);                                            \
        left = _mm256_add_epi32(left, _mm256_madd_epi16(four, l));                                 \
        right = _mm256_add_epi32(right, _mm256_madd_epi16(four, r));                               \
    } while (0)
                for (int64_t at = 0; at < size; at += 4) {
                    const __m128i *four_keys = (const __m128i *)(key + 8 * at);
                    const __m256i l = _mm256_cvtepi8_epi16(_mm_loadu_si128(four_keys));
                    const __m256i r = _mm256_cvtepi8_epi16(_mm_loadu_si128(four_keys + 1));
                    ADD_PRODUCTS(a0, b0, q0);
                    ADD_PRODUCTS(a1, b1, q1);
                    ADD_PRODUCTS(a2, b2, q2);
                    ADD_PRODUCTS(a3, b3, q3);
                }
#undef ADD_PRODUCTS
                const __m256i start =
                    _mm256_loadu_si256((const __m256i *)(keys->offsets + first + 8 * half));
                const __m256i sums[4] = {_mm256_hadd_epi32(a0, b0), _mm256_hadd_epi32(a1, b1),
                                         _mm256_hadd_epi32(a2, b2), _mm256_hadd_epi32(a3, b3)};
                for (int32_t i = 0; i < 4; i++)
                    found[half][i] =
                        _mm256_add_epi32(start, _mm256_permute4x64_epi64(sums[i], 0xD8));
            }
            for (int32_t i = 0; i < 4; i++)
                store_bytes(found[0][i], found[1][i], keys, bytes + (row + i) * keys->stride + first);
        }
}
#endif

#if defined(__aarch64__) && defined(__linux__) && defined(__GNUC__)
#include <arm_neon.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>

#if defined(__clang__)
#define DOT_TARGET __attribute__((target("dotprod")))
#else
#define DOT_TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

/* Four rows and eight keys at a time. */
DOT_TARGET static void product_neon_dot(const uint8_t *queries, const Keys *keys, uint8_t *bytes)
{
    const int64_t size = 4 * keys->groups;
    const int32x4_t shift = vdupq_n_s32(-keys->shift);
    for (int64_t first = 0; first < keys->stride; first += 8)
        for (int32_t row = 0; row < QUERIES; row += 4) {
            int32x4_t left[4], right[4];
            for (int32_t i = 0; i < 4; i++)
                left[i] = right[i] = vdupq_n_s32(0);
            for (int64_t at = 0; at < size; at += 4) {
                const int8_t *key = keys->packed + first * size + 8 * at;
                const int8x16_t l = vld1q_s8(key), r = vld1q_s8(key + 16);
                for (int32_t i = 0; i < 4; i++) {
                    uint32_t four;
                    memcpy(&four, queries + (row + i) * size + at, 4);
                    /* Bytes around 128 are signed ones with the highest bit turned. */
                    const uint32x4_t repeated = vdupq_n_u32(four ^ 0x80808080u);
                    const int8x16_t query = vreinterpretq_s8_u32(repeated);
                    left[i] = vdotq_s32(left[i], l, query);
                    right[i] = vdotq_s32(right[i], r, query);
                }
            }
            for (int32_t i = 0; i < 4; i++) {
                const int16x4_t low = vqmovn_s32(vshlq_s32(left[i], shift));
                const int16x4_t high = vqmovn_s32(vshlq_s32(right[i], shift));
                const int16x8_t scaled = vqrdmulhq_n_s16(vcombine_s16(low, high), keys->factor);
                vst1_u8(bytes + (row + i) * keys->stride + first, vqmovun_s16(scaled));
            }
        }
}
#endif

/* The kinds by their numbers, from the one that every processor has; 0 where this one lacks it. */
static Product product_of(int32_t kind)
{
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (kind == 1)
        return __builtin_cpu_supports("avx2") ? product_avx2 : 0;
    if (kind == 2)
        return has_avx_vnni() ? product_avx_vnni : 0;
    if (kind == 3)
        return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl")
                   ? product_avx512_vnni
                   : 0;
#endif
#if defined(__aarch64__) && defined(__linux__) && defined(__GNUC__)
    if (kind == 4)
        return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? product_neon_dot : 0;
#endif
    return kind == 0 ? product_plain : 0;
}

enum { KINDS = 5 };

Product fastest_product(void)
{
    for (int32_t kind = KINDS - 1; kind > 0; kind--)
        if (product_of(kind))
            return product_of(kind);
    return product_plain;
}

/* Bytes of the cosines of eight queries and all keys by one kind of instructions, for comparisons.
 *
 * queries: (8, 4 groups), packed, offsets, ...: see Keys; bytes: (8, stride).
 * Returns 0, or -1 where this processor lacks them or there is no such kind. */
int32_t d2s_products(int32_t kind, const uint8_t *queries, const int8_t *packed,
                     const int32_t *offsets, int64_t stride, int32_t groups, int32_t shift,
                     int32_t factor, uint8_t *bytes)
{
    const Keys keys = {packed, offsets, stride, stride, groups, shift, (int16_t)factor};
    const Product product = product_of(kind);
    if (!product)
        return -1;
    product(queries, &keys, bytes);
    return 0;
}
