"""The optional parts of the build: the CPU kernels in C++ and the profiler's in C. The rest is in pyproject.toml.

Without a working compiler the installation succeeds and the kernels run through torch instead.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "executor.native._kernels",
            sources=[
                f"executor/native/{kernels}.cpp"
                for kernels in ("attention", "choices", "elementwise", "prefill", "products")
            ],
            depends=[
                f"executor/native/{kernel}.h"
                for kernel in (
                    "attention_kernel",
                    "bfloat16_dot",
                    "choices_kernel",
                    "common",
                    "each_path",
                    "elementwise_kernel",
                    "kernels_for_path",
                    "prefill_kernel",
                    "products_avx2",
                    "products_dot",
                    "products_kernel",
                    "products_mixture",
                    "vectors",
                )
            ],
            language="c++",
            extra_compile_args=[
                "-O3",
                "-g0",
                "-std=c++17",
                "-pthread",
                "-ffp-contract=fast",
                "-fno-math-errno",
                "-fvisibility=hidden",
                "-Wno-psabi",
                "-Wno-maybe-uninitialized",
                "-Wno-uninitialized",
            ],
            extra_link_args=["-pthread"],
            optional=True,
        ),
        Extension(
            "hrm.microbench.native._streams",
            sources=["hrm/microbench/native/streams.c", "hrm/microbench/native/reads.c"],
            depends=["hrm/microbench/native/streams_path.h"],
            extra_compile_args=["-O3", "-g0", "-std=gnu11", "-pthread", "-fvisibility=hidden"],
            extra_link_args=["-pthread"],
            optional=True,
        ),
    ]
)
