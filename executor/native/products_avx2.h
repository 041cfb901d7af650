// A tile of four rows of x by three of weights on AVX2, in assembly: twelve sums, three weights and a row fill the sixteen
// registers to the last one, which compilers do not find: they put sums into memory. Included by products_kernel.h.

// What follows names registers itself. ymm0-11 are sums [weight][row], ymm12-14 the weights' halves, ymm15 is free.
#define HRM_ROW(x, first, second, third, bytes)              \
    "vmovups " bytes "(%[" x "],%[at],4), %%ymm15\n\t"       \
    "vfmadd231ps %%ymm15, %%ymm12, %%ymm" first "\n\t"       \
    "vfmadd231ps %%ymm15, %%ymm13, %%ymm" second "\n\t"      \
    "vfmadd231ps %%ymm15, %%ymm14, %%ymm" third "\n\t"
#define HRM_ROWS(bytes) \
    HRM_ROW("x0", "0", "4", "8", bytes) HRM_ROW("x1", "1", "5", "9", bytes) HRM_ROW("x2", "2", "6", "10", bytes) HRM_ROW("x3", "3", "7", "11", bytes)
#define HRM_FOR_SUMS(line)                                                                                              \
    line("0", "0") line("32", "1") line("64", "2") line("96", "3") line("128", "4") line("160", "5") line("192", "6") \
        line("224", "7") line("256", "8") line("288", "9") line("320", "10") line("352", "11")
#define HRM_CLEAR_SUM(bytes, sum) "vxorps %%ymm" sum ", %%ymm" sum ", %%ymm" sum "\n\t"
#define HRM_STORE_SUM(bytes, sum) "vmovaps %%ymm" sum ", " bytes "(%[sums])\n\t"
#define HRM_WEIGHT(load, bytes, w, scale, to) load " " bytes "(%[" w "],%[at]," scale "), " to "\n\t"

// Over the units of a tile, from `at` = -elements up to 0 from the ends of the rows.
#define HRM_TILE(scale, first_half, second_half)                                                                       \
    asm volatile(HRM_FOR_SUMS(HRM_CLEAR_SUM)                                                                            \
                 ".p2align 5\n"                                                                                        \
                 "1:\n\t"                                                                                              \
                 "prefetcht0 (%[n0],%[at]," scale ")\n\t"                                                              \
                 "prefetcht0 (%[n1],%[at]," scale ")\n\t"                                                              \
                 "prefetcht0 (%[n2],%[at]," scale ")\n\t"                                                              \
                 first_half HRM_ROWS("0") second_half HRM_ROWS("32")                                                   \
                 "add $16, %[at]\n\t"                                                                                  \
                 "jl 1b\n\t"                                                                                           \
                 HRM_FOR_SUMS(HRM_STORE_SUM)                                                                           \
                 : [at] "+r"(at)                                                                                       \
                 : [w0] "r"(weights[0] + elements), [w1] "r"(weights[1] + elements), [w2] "r"(weights[2] + elements),  \
                   [n0] "r"(next[0] + elements), [n1] "r"(next[1] + elements), [n2] "r"(next[2] + elements),           \
                   [x0] "r"(x[0] + elements), [x1] "r"(x[1] + elements), [x2] "r"(x[2] + elements),                    \
                   [x3] "r"(x[3] + elements), [sums] "r"(sums), [odd] "m"(kOdd)                                        \
                 : "memory", "cc", "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9",     \
                   "ymm10", "ymm11", "ymm12", "ymm13", "ymm14", "ymm15")

// As WideTile::multiply.
HRM_TARGET inline void multiply_four_by_three(const uint16_t* const* weights, const uint16_t* const* next,
                                              const float* const* x, int64_t elements, Vec* sums) {
    int64_t at = -elements;
    HRM_TILE("2",
             HRM_WEIGHT("vmovdqu", "", "w0", "2", "%%ymm12") HRM_WEIGHT("vmovdqu", "", "w1", "2", "%%ymm13")
             HRM_WEIGHT("vmovdqu", "", "w2", "2", "%%ymm14")
             "vpslld $16, %%ymm12, %%ymm12\n\tvpslld $16, %%ymm13, %%ymm13\n\tvpslld $16, %%ymm14, %%ymm14\n\t",
             "vmovdqa %[odd], %%ymm15\n\t"
             HRM_WEIGHT("vpand", "", "w0", "2", "%%ymm15, %%ymm12") HRM_WEIGHT("vpand", "", "w1", "2", "%%ymm15, %%ymm13")
             HRM_WEIGHT("vpand", "", "w2", "2", "%%ymm15, %%ymm14"));
}

HRM_TARGET inline void multiply_four_by_three(const float* const* weights, const float* const* next,
                                              const float* const* x, int64_t elements, Vec* sums) {
    int64_t at = -elements;
    HRM_TILE("4",
             HRM_WEIGHT("vmovups", "", "w0", "4", "%%ymm12") HRM_WEIGHT("vmovups", "", "w1", "4", "%%ymm13")
             HRM_WEIGHT("vmovups", "", "w2", "4", "%%ymm14"),
             HRM_WEIGHT("vmovups", "32", "w0", "4", "%%ymm12") HRM_WEIGHT("vmovups", "32", "w1", "4", "%%ymm13")
             HRM_WEIGHT("vmovups", "32", "w2", "4", "%%ymm14"));
}

#undef HRM_ROW
#undef HRM_ROWS
#undef HRM_FOR_SUMS
#undef HRM_CLEAR_SUM
#undef HRM_STORE_SUM
#undef HRM_WEIGHT
#undef HRM_TILE
