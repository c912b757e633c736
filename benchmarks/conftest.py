"""Lets benchmarks import the baselines beside them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
