"""What pyproject.toml cannot say: the wheel with the C module, or, with FREEZEFRAME_PURE=1, one for
any processor."""

import os

from setuptools import Extension, setup

NATIVE = Extension(
    "freezeframe.harness.core.link._native",
    sources=[
        "harness/native/module.c",
        "harness/native/capture.c",
        "harness/native/checksum.c",
        "harness/native/skim.c",
    ],
    depends=["harness/native/native.h"],
    extra_compile_args=[
        "-O3",
        "-std=c11",
        "-Wall",
        "-Wextra",
        "-Wno-missing-field-initializers",
        "-fno-strict-aliasing",
    ],
    # Without a compiler the Python code does the same, slower
    # (docs/decisions/0009-an-optional-c-module.md).
    optional=True,
)

setup(ext_modules=[] if os.environ.get("FREEZEFRAME_PURE") == "1" else [NATIVE])
