"""Builds the C++ extension and maps the folders engine/, kernels/, recipes/ and requirements/ into the package ralign.

The folders have no common parent in the source tree, and the package needs none: ralign is a namespace package.
"""

from glob import glob

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import find_namespace_packages, setup

FOLDERS = ("engine", "kernels", "recipes", "requirements")


def packages_in(folder: str) -> list[str]:
    """Import names of a folder and of the folders in it."""
    inner = find_namespace_packages(folder, exclude=["*__pycache__"])
    return [f"ralign.{folder}", *(f"ralign.{folder}.{name}" for name in inner)]


setup(
    packages=[name for folder in FOLDERS for name in packages_in(folder)],
    package_dir={f"ralign.{folder}": folder for folder in FOLDERS},
    package_data={
        "ralign.engine.report": ["*.html"],
        "ralign.recipes.slurm": ["*.sbatch"],
        "ralign.requirements": ["*.lock"],  # ralign-check compares the installed versions with them
    },
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
