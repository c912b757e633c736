"""Rewards, advantages, objectives and MetaRMs from outside the package, each through a whole step of the trainer."""

import pytest


@pytest.fixture(scope="module")
def steps(torchrun_module) -> dict[str, dict[str, float]]:
    """Metrics of a first step, by the implementation that it uses."""
    return torchrun_module("registries", 1)


BY = pytest.mark.parametrize("by", ["name", "path"])


@BY
def test_a_reward_from_outside(steps, by):
    own, built_in = steps[f"reward by {by}"], steps["r_align, dr_grpo"]
    assert 0 < built_in["reward/mean"] < 1 and built_in["policy/grad_norm"] > 0
    assert own["reward/mean"] == 2 * built_in["reward/mean"]
    assert own["judge/s_corr"] == built_in["judge/s_corr"]
    assert own["policy/grad_norm"] == pytest.approx(2 * built_in["policy/grad_norm"], rel=1e-4)


@BY
def test_advantages_from_outside(steps, by):
    own, built_in = steps[f"advantages by {by}"], steps["r_align, dr_grpo"]
    assert own == pytest.approx(built_in, rel=1e-4, abs=1e-7, nan_ok=True)
    assert own["policy/grad_norm"] != pytest.approx(steps["r_align"]["policy/grad_norm"], rel=1e-2)


@BY
def test_an_objective_from_outside(steps, by):
    own, built_in = steps[f"objective by {by}"], steps["r_align"]
    assert own["policy/grad_norm"] == pytest.approx(built_in["policy/grad_norm"] / 2, rel=1e-4)
    assert own["reward/mean"] == built_in["reward/mean"]


@BY
def test_a_metarm_from_outside(steps, by):
    """Its reviews make every right verdict count."""
    own, rule = steps[f"metarm by {by}"], steps["r_align"]
    assert own["judge/s_corr"] == 0 < rule["judge/s_corr"]
    assert own["reward/mean"] == own["judge/l_acc"] == rule["judge/l_acc"] > rule["reward/mean"]
