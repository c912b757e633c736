"""Builds the C++ extension and maps the folders engine/ and kernels/ to ralign.engine and ralign.kernels."""

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import find_packages, setup

setup(
    packages=[
        "ralign.engine",
        *(f"ralign.engine.{name}" for name in find_packages("engine")),
        "ralign.kernels",
    ],
    package_dir={"ralign.engine": "engine", "ralign.kernels": "kernels"},
    ext_modules=[
        Pybind11Extension(
            "ralign.kernels._packing",
            ["csrc/bindings.cpp", "csrc/plan.cpp"],
            cxx_std=17,
            extra_compile_args=["-O3", "-Wall", "-Wextra"],
        )
    ],
    cmdclass={"build_ext": build_ext},
)
