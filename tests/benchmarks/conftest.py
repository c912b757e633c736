"""Lets tests import what they test: benchmarks/ is a folder of programs, not a package."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
