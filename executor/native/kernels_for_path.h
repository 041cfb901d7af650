// The kernels of a path, where each has one table of them, `kernels`; included after each_path.h. What dot products of bfloat16
// would add does not serve these.

const Kernels& kernels_for(int path) {
#if defined(__x86_64__)
    if (path >= kAvx512) return avx512::kernels;
    if (path == kAvx2) return avx2::kernels;
#endif
    (void)path;
    return portable::kernels;
}
