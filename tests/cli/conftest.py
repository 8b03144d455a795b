"""A recipe whose cells are among those of the suite `smoke`."""

from pathlib import Path

import pytest

RECIPE = """
title = "A paper"
source = "Someone 2020"
read_at = "table 1"
deviations = ["none of note"]

[suite]
name = "someone2020"
version = "1"
seeds = [0]
examples = 64

[[suite.matrix]]
tasks = ["breast-cancer"]
defenses = ["none"]
attacks = ["pgd(steps=10)", "uniform-noise"]
threats = ["evasion/white/linf:0.05"]

[[expected]]
what = "PGD accuracy"
paper = {paper}
tolerance = 1
attack = "pgd(steps=10)"
metric = "robust_accuracy"
"""


@pytest.fixture
def own_recipe(tmp_path: Path) -> Path:
    """Return a recipe whose number nobody could measure."""
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(paper=200))
    return path
