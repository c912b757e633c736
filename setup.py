"""Builds the C++ extension and maps the folders engine/, kernels/ and recipes/ into the package ralign."""

from glob import glob

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import find_packages, setup

setup(
    packages=[
        "ralign.engine",
        *(f"ralign.engine.{name}" for name in find_packages("engine")),
        "ralign.kernels",
        "ralign.recipes",
        "ralign.recipes.common",
        "ralign.recipes.paper",
    ],
    package_dir={"ralign.engine": "engine", "ralign.kernels": "kernels", "ralign.recipes": "recipes"},
    package_data={"ralign.engine.report": ["*.html"]},
    ext_modules=[
        Pybind11Extension(
            "ralign.kernels._packing",
            sorted(glob("csrc/*.cpp")),
            depends=sorted(glob("csrc/*.h")),
            cxx_std=17,
            # No fused multiply-add: a plan is the same on every machine.
            extra_compile_args=["-O3", "-Wall", "-Wextra", "-ffp-contract=off"],
        )
    ],
    cmdclass={"build_ext": build_ext},
)
