// What stands between linear layers, in one pass over bfloat16 rows that are neighbours, computed in float32. The size of a
// row is a multiple of 32.

#include "bf16.h"

// out = (x + residual - mean) / deviation * weight + bias, row by row; without `is_centered`, mean is 0 and deviation the root
// mean square. No residual: NULL. sum has room for a row. out may be x.
static void normalize(const bf16 *x, const bf16 *residual, const float *weight, const float *bias, bf16 *out, int64_t size,
                      float epsilon, int is_centered, float *sum)
{
    __m512 totals[2] = {0}, squares[2] = {0}, mean = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += 32)
        for (int j = 0; j < 2; j++) {
            __m512 a = widen(x + i + 16 * j);
            if (residual)
                a = _mm512_add_ps(a, widen(residual + i + 16 * j));
            _mm512_storeu_ps(sum + i + 16 * j, a);
            totals[j] = _mm512_add_ps(totals[j], a);
        }
    if (is_centered)
        mean = _mm512_set1_ps(_mm512_reduce_add_ps(_mm512_add_ps(totals[0], totals[1])) / size);
    for (int64_t i = 0; i < size; i += 32)
        for (int j = 0; j < 2; j++) {
            __m512 a = _mm512_sub_ps(_mm512_loadu_ps(sum + i + 16 * j), mean);
            squares[j] = _mm512_fmadd_ps(a, a, squares[j]);
        }
    float variance = _mm512_reduce_add_ps(_mm512_add_ps(squares[0], squares[1])) / size;
    __m512 by = _mm512_set1_ps(1.0f / __builtin_sqrtf(variance + epsilon));
    for (int64_t i = 0; i < size; i += 32) {
        __m512 both[2];
        for (int j = 0; j < 2; j++) {
            int64_t k = i + 16 * j;
            __m512 a = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(sum + k), mean), by);
            both[j] = _mm512_fmadd_ps(a, _mm512_loadu_ps(weight + k), _mm512_loadu_ps(bias + k));
        }
        _mm512_storeu_si512(out + i, (__m512i)_mm512_cvtne2ps_pbh(both[1], both[0]));
    }
}

void norm(const bf16 *x, const bf16 *residual, const float *weight, const float *bias, bf16 *out, int64_t rows, int64_t size,
          float epsilon, int is_centered)
{
    float sum[size];
    for (int64_t i = 0; i < rows * size; i += size)
        normalize(x + i, residual ? residual + i : NULL, weight, bias, out + i, size, epsilon, is_centered, sum);
}

// x = silu(x) * y, of `count` values
void gate(bf16 *x, const bf16 *y, int64_t count)
{
    __m512 one = _mm512_set1_ps(1.0f), minus = _mm512_set1_ps(-1.44269504f);
    for (int64_t i = 0; i < count; i += 32) {
        __m512 both[2];
        for (int j = 0; j < 2; j++) {
            __m512 a = widen(x + i + 16 * j);
            __m512 sigmoid = _mm512_rcp14_ps(_mm512_add_ps(one, exp2_of(_mm512_mul_ps(a, minus))));
            both[j] = _mm512_mul_ps(_mm512_mul_ps(a, sigmoid), widen(y + i + 16 * j));
        }
        _mm512_storeu_si512(x + i, (__m512i)_mm512_cvtne2ps_pbh(both[1], both[0]));
    }
}
