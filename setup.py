"""The one part of the build that pyproject.toml cannot say: the C extension and its abi3 tag."""

from pathlib import Path

from setuptools import Extension, setup

SHIM = Path("jax_trn3/pjrt/shim")

setup(
    ext_modules=[
        Extension(
            "jax_trn3.pjrt._shim",
            sources=sorted(str(path) for path in SHIM.glob("*.c")),
            depends=sorted(str(path) for path in SHIM.glob("*.h")),
            define_macros=[
                ("PLATFORM_MODULE", '"jax_trn3.plugin"'),
                ("_DEFAULT_SOURCE", "1"),  # POSIX beside C17
            ],
            extra_compile_args=[
                "-std=c17",
                "-O2",
                "-Wall",
                "-Wextra",
                "-Werror=implicit-function-declaration",
                "-fvisibility=hidden",
            ],
            extra_link_args=["-pthread"],
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
