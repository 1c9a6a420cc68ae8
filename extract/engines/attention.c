// Attention within each sequence of a packed batch, in bfloat16, for CPUs with AVX512-bf16. Scores of eight queries at a time
// stay in the first cache, from their product with the keys to the one with the values; nothing is copied but keys and values
// of one head, into pairs as the instruction wants them. Products add up in float32, the softmax is in float32. Strides, of
// heads and tokens, are in elements; dimensions of a head are neighbours.

#include "bf16.h"
#include <stdlib.h>

#define ROWS 8        // queries at a time: with two vectors each, 16 sums in registers
#define LOWEST -1e30f // of a score that is none

#define PADDED(tokens) (((tokens) + 31) / 32 * 32)

static inline __m512 dot(__m512 sum, uint32_t pair, __m512i pairs)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32((int)pair), (__m512bh)pairs);
}

// keys: [padded / 16][size / 2][16] pairs of dimensions. values: [padded / 2][size] pairs of tokens. Both end in zeros.
static void pack(const bf16 *k, int64_t k_token, const bf16 *v, int64_t v_token, int64_t tokens, int64_t size, uint32_t *keys,
                 uint32_t *values)
{
    int64_t half = size / 2, padded = PADDED(tokens);
    for (int64_t t = 0; t < padded; t++) {
        const uint32_t *row = (const uint32_t *)(k + t * k_token);
        uint32_t *to = keys + t / 16 * half * 16 + t % 16;
        for (int64_t c = 0; c < half; c++)
            to[c * 16] = t < tokens ? row[c] : 0;
    }
    for (int64_t t = 0; t < padded; t += 2)
        for (int64_t c = 0; c < size; c++) {
            uint32_t low = t < tokens ? v[t * v_token + c] : 0, high = t + 1 < tokens ? v[(t + 1) * v_token + c] : 0;
            values[t / 2 * size + c] = low | high << 16;
        }
}

// scores: [ROWS][padded] of eight queries, and the largest of each; query r sees the first seen[r] tokens
static void score(const uint32_t *const *q, const uint32_t *keys, const int64_t *seen, int64_t padded, int64_t half,
                  float *scores, float *largest)
{
    __m512 most[ROWS];
    for (int r = 0; r < ROWS; r++)
        most[r] = _mm512_set1_ps(LOWEST);
    for (int64_t t = 0; t < padded; t += 32) {
        __m512 sums[ROWS][2] = {0};
        const uint32_t *first = keys + t * half, *second = first + 16 * half;
        for (int64_t c = 0; c < half; c++) {
            __m512i a = _mm512_loadu_si512(first + c * 16), b = _mm512_loadu_si512(second + c * 16);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                sums[r][0] = dot(sums[r][0], q[r][c], a);
                sums[r][1] = dot(sums[r][1], q[r][c], b);
            }
        }
        for (int r = 0; r < ROWS; r++) {
            int64_t left = seen[r] - t;
            __mmask32 real = left >= 32 ? 0xffffffffu : left <= 0 ? 0 : (1u << left) - 1;
            for (int i = 0; i < 2; i++) {
                __m512 s = _mm512_mask_mov_ps(_mm512_set1_ps(LOWEST), (__mmask16)(real >> 16 * i), sums[r][i]);
                most[r] = _mm512_max_ps(most[r], s);
                _mm512_storeu_ps(scores + r * padded + t + 16 * i, s);
            }
        }
    }
    for (int r = 0; r < ROWS; r++)
        largest[r] = _mm512_reduce_max_ps(most[r]);
}

// chances: [ROWS][padded], not yet divided by the sums that are returned inverted
static void soften(const float *scores, int64_t padded, float scale, const float *largest, bf16 *chances, float *inverse)
{
    for (int r = 0; r < ROWS; r++) {
        __m512 by = _mm512_set1_ps(scale), minus = _mm512_set1_ps(-scale * largest[r]), sum = _mm512_setzero_ps();
        for (int64_t t = 0; t < padded; t += 32) {
            const float *s = scores + r * padded + t;
            __m512 a = exp2_of(_mm512_fmadd_ps(_mm512_loadu_ps(s), by, minus));
            __m512 b = exp2_of(_mm512_fmadd_ps(_mm512_loadu_ps(s + 16), by, minus));
            sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
            _mm512_storeu_si512(chances + r * padded + t, (__m512i)_mm512_cvtne2ps_pbh(b, a));
        }
        inverse[r] = 1.0f / _mm512_reduce_add_ps(sum);
    }
}

// 32 dimensions of eight outputs
static void mix(const bf16 *chances, const uint32_t *values, int64_t padded, int64_t size, const float *inverse, bf16 *const *out)
{
    __m512 sums[ROWS][2] = {0};
    for (int64_t t = 0; t < padded; t += 2) {
        __m512i a = _mm512_loadu_si512(values + t / 2 * size), b = _mm512_loadu_si512(values + t / 2 * size + 16);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            uint32_t pair = *(const uint32_t *)(chances + r * padded + t);
            sums[r][0] = dot(sums[r][0], pair, a);
            sums[r][1] = dot(sums[r][1], pair, b);
        }
    }
    for (int r = 0; r < ROWS; r++) {
        __m512 by = _mm512_set1_ps(inverse[r]);
        __m512bh both = _mm512_cvtne2ps_pbh(_mm512_mul_ps(sums[r][1], by), _mm512_mul_ps(sums[r][0], by));
        _mm512_storeu_si512(out[r], (__m512i)both);
    }
}

// q: [heads, N, size]; k, v: [heads / group, N, size]; out: [N, heads, size], contiguous; size a multiple of 32; stops: where
// each sequence ends in N. Returns 0, or 1 without memory.
int attend(const bf16 *q, int64_t q_head, int64_t q_token, const bf16 *k, int64_t k_head, int64_t k_token, const bf16 *v,
           int64_t v_head, int64_t v_token, bf16 *out, const int64_t *stops, int64_t num_sequences, int64_t heads,
           int64_t group, int64_t size, float scale, int is_causal)
{
    int64_t longest = 0;
    for (int64_t i = 0; i < num_sequences; i++) {
        int64_t tokens = stops[i] - (i ? stops[i - 1] : 0);
        longest = tokens > longest ? tokens : longest;
    }
    longest = PADDED(longest);
    char *memory = aligned_alloc(64, (size_t)longest * (4 * size + ROWS * 6));
    if (!memory)
        return 1;
    uint32_t *keys = (uint32_t *)memory, *values = keys + longest * size / 2;
    float *scores = (float *)(values + longest * size / 2), largest[ROWS], inverse[ROWS];
    bf16 *chances = (bf16 *)(scores + longest * ROWS);
    scale *= 1.44269504f;
    for (int64_t i = 0, start = 0; i < num_sequences; start = stops[i++])
        for (int64_t h = 0, tokens = stops[i] - start; h < heads; h++) {
            if (h % group == 0)
                pack(k + h / group * k_head + start * k_token, k_token, v + h / group * v_head + start * v_token, v_token, tokens,
                     size, keys, values);
            for (int64_t t = 0; t < tokens; t += ROWS) {
                const uint32_t *rows[ROWS];
                bf16 *to[ROWS];
                int64_t seen[ROWS];
                for (int r = 0; r < ROWS; r++) { // past the end: the last one again, into the same place
                    int64_t token = t + r < tokens ? t + r : tokens - 1;
                    seen[r] = is_causal ? token + 1 : tokens;
                    rows[r] = (const uint32_t *)(q + h * q_head + (start + token) * q_token);
                    to[r] = out + ((start + token) * heads + h) * size;
                }
                int64_t padded = PADDED(seen[ROWS - 1]);
                score(rows, keys, seen, padded, size / 2, scores, largest);
                soften(scores, padded, scale, largest, chances, inverse);
                for (int64_t c = 0; c < size; c += 32) {
                    mix(chances, values + c, padded, size, inverse, to);
                    for (int r = 0; r < ROWS; r++)
                        to[r] += 32;
                }
            }
        }
    free(memory);
    return 0;
}
