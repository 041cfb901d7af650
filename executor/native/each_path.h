// Compiles a kernel once per instruction set: includes the header that HRM_KERNEL names, in a namespace of each path, with
//   HRM_NAMESPACE  the name of the path
//   HRM_WIDTH      floats per vector: 4, 8 or 16
//   HRM_TARGET     the function attribute that lets the compiler use the path's instructions
//   HRM_BF16_DOT   defined on the last path alone: it has AVX512-BF16 dot products

#define HRM_NAMESPACE portable
#define HRM_WIDTH 4
#define HRM_TARGET
#include HRM_KERNEL
#undef HRM_NAMESPACE
#undef HRM_WIDTH
#undef HRM_TARGET

#if defined(__x86_64__)
#define HRM_NAMESPACE avx2
#define HRM_WIDTH 8
#define HRM_TARGET __attribute__((target("avx2,fma")))
#include HRM_KERNEL
#undef HRM_NAMESPACE
#undef HRM_WIDTH
#undef HRM_TARGET

#define HRM_NAMESPACE avx512
#define HRM_WIDTH 16
#define HRM_TARGET __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")))
#include HRM_KERNEL
#undef HRM_NAMESPACE
#undef HRM_WIDTH
#undef HRM_TARGET

#define HRM_NAMESPACE avx512_bf16
#define HRM_WIDTH 16
#define HRM_TARGET __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define HRM_BF16_DOT
#include HRM_KERNEL
#undef HRM_NAMESPACE
#undef HRM_WIDTH
#undef HRM_TARGET
#undef HRM_BF16_DOT
#endif

#undef HRM_KERNEL
