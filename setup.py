"""What pyproject.toml cannot say: the compiled parts. Each is optional, and has a plain twin."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "hf_dumper.capture._hooks",
            ["hf_dumper/capture/_hooks.c"],
            extra_compile_args=["-O3", "-std=gnu11"],
            optional=True,
        ),
    ]
)
