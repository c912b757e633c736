import json
from types import SimpleNamespace

import proof
import pytest


def made(rlvr, twins):
    cell = dict.fromkeys(proof.METRICS, 50.0)
    return {"rlvr": {"unbiased": cell | rlvr}, "r_align_twins": {"unbiased": cell | twins}}


GOOD = made({"l_acc": 75.0, "flip_rate": 40.0}, {"l_acc": 90.0, "s_corr": 5.0, "flip_rate": 5.0})


def test_the_criteria_hold_at_their_bounds_and_each_fails_alone():
    assert proof.verdict_on(GOOD) == "all 5 criteria hold"
    for arm, metric, value in (
        ("rlvr", "l_acc", 75.1), ("rlvr", "flip_rate", 39.9), ("r_align_twins", "l_acc", 89.9),
        ("r_align_twins", "s_corr", 5.1), ("r_align_twins", "flip_rate", None),
    ):  # fmt: skip
        bad = json.loads(json.dumps(GOOD))
        bad[arm]["unbiased"][metric] = value
        assert proof.verdict_on(bad).startswith(f"failed: {arm} unbiased {metric}")


def test_only_trained_arms_are_judged():
    assert proof.verdict_on({"rlvr": GOOD["rlvr"]}) == "all 2 criteria hold"


def test_the_table_has_median_and_range_over_the_runs():
    other = made({"l_acc": 55.0, "flip_rate": 60.0}, {"l_acc": 80.0, "s_corr": None})
    lines = proof.table([GOOD, other, GOOD]).splitlines()
    assert lines[2].startswith("| rlvr | unbiased | 75.0 (55.0 to 75.0) | 50.0 (50.0 to 50.0)")
    assert lines[3].split(" | ")[3] == "5.0 (5.0 to 5.0)" and lines[-1] == "all criteria hold in 2 of 3 runs"


def test_figures_of_a_summary_are_in_per_cent():
    found = {name: {"value": 0.5} for name in proof.METRICS} | {"s_corr": {"value": None}}
    found["flip_rate"] = {"cues": {"value": 0.125, "low": 0, "high": 1}}
    cells = proof.percentages(found)
    assert cells["l_acc"] == 50.0 and cells["s_corr"] is None and cells["flip_rate"] == 12.5


def test_a_run_that_is_in_the_results_is_not_repeated(tmp_path, monkeypatch, capsys):
    asked = []

    def one_run(args, seed, processes):
        asked.append((seed, processes))
        return {"seed": seed, "processes": processes, "settings": args.set, "result": GOOD}

    args = SimpleNamespace(seeds=range(2), processes=[1, 2], set=[], name="x")
    monkeypatch.setattr(proof, "RESULTS", tmp_path)
    monkeypatch.setattr(proof, "read_args", lambda: args)
    monkeypatch.setattr(proof, "one_run", one_run)
    proof.main()
    args.seeds = range(3)
    proof.main()
    assert asked == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert len(json.loads((tmp_path / "x.json").read_text())) == 6
    assert "all criteria hold in 6 of 6 runs" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "seeds"), [("3", [3]), ("0-2", [0, 1, 2])])
def test_seeds_are_a_range(text, seeds):
    assert list(proof._range(text)) == seeds
