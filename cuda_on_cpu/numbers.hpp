// Numbers of the types that libraries multiply and add, by cuBLAS's names of types.
#pragma once
#include "cuda_fp16.h"
#include "cuda_bf16.h"

enum Type { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };
static size_t size_of(int type) { return type == F64 ? 8 : type == F32 ? 4 : 2; }
static double get(const void* p, int type, size_t i) {
    if (type == F32) return ((const float*)p)[i];
    if (type == F64) return ((const double*)p)[i];
    return type == F16 ? (float)((const __half*)p)[i] : (float)((const __nv_bfloat16*)p)[i];
}
static void put(void* p, int type, size_t i, double v) {
    if (type == F32) ((float*)p)[i] = (float)v;
    else if (type == F64) ((double*)p)[i] = v;
    else if (type == F16) ((__half*)p)[i] = __float2half_rn((float)v);
    else ((__nv_bfloat16*)p)[i] = __float2bfloat16_rn((float)v);
}
