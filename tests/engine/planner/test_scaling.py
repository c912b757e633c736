"""docs/scale.md shows what the planner says today."""

from pathlib import Path

import pytest
from scaling_table import HEAD, RECIPES, row

DOC = (Path(__file__).resolve().parents[3] / "docs" / "scale.md").read_text()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("num_gpus, chip", [(8, "h200"), (64, "h100")])
def test_the_tables_are_the_planner_s(recipe, num_gpus, chip):
    section = DOC.split(f"### {recipe}\n")[1].split("\n##")[0]
    assert HEAD in section
    assert row(recipe, num_gpus, chip) in section, "print them again: python benchmarks/scaling_table.py"
