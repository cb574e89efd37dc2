"""What pyproject.toml cannot say: the compiled parts. Each is optional, and has a plain twin."""

from setuptools import Extension, setup

FLAGS = ["-O3", "-std=gnu11", "-fopenmp-simd"]  # pragmas only: no OpenMP at run time

setup(
    ext_modules=[
        Extension(
            "hf_dumper.capture._hooks",
            ["hf_dumper/capture/_hooks.c"],
            extra_compile_args=FLAGS,
            optional=True,
        ),
        Extension(
            "hf_dumper.core._sums",
            ["hf_dumper/core/_sums.c"],
            extra_compile_args=FLAGS,
            optional=True,
        ),
        Extension(
            "hf_dumper.compare._kernels",
            ["hf_dumper/compare/_kernels.c"],
            extra_compile_args=FLAGS,
            py_limited_api=True,
            optional=True,
        ),
    ]
)
