// What attention.c and layers.c share: bfloat16 as it lies in memory, and an exponential.

#pragma once
#include <immintrin.h>
#include <stdint.h>

typedef uint16_t bf16;

static inline __m512 widen(const bf16 *x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16));
}

static inline __m512 exp2_of(__m512 x) // relative error 4e-5
{
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_fmadd_ps(f, _mm512_set1_ps(0.00961813f), _mm512_set1_ps(0.05550411f));
    y = _mm512_fmadd_ps(f, y, _mm512_set1_ps(0.24022651f));
    y = _mm512_fmadd_ps(f, y, _mm512_set1_ps(0.69314718f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(f, y, _mm512_set1_ps(1.0f)), whole);
}
