"""The rules that need no model, and where they are shown."""

import json

import pytest
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld
from ralign.engine.evaluation.baselines import baselines_of
from ralign.engine.evaluation.cli import _main
from ralign.engine.evaluation.records import metarm_fields
from ralign.engine.judging.intervals import wilson
from ralign.engine.judging.metarm import Outcome
from ralign.engine.report.summary import read_summary


def _record(number, a="long", b="s", label="A", **meta):
    return {
        "id": f"p{number}",
        "conversations": [{"role": "user", "content": f"Question {number}?"}],
        "response_A": a,
        "response_B": b,
        "gt_label": label,
        "model_pred": "A",
        **metarm_fields(Outcome.CORRECT if label == "A" else Outcome.SKIPPED),
        "meta": {"model_name": "judge", **meta},
    }


def test_the_longer_response_and_always_a():
    records = [_record(0), _record(1, label="B"), _record(2, a="s", b="long"), _record(3, a="same", b="size")]
    found = baselines_of({"t": records})
    assert set(found) == {"longer", "first_side"}
    assert found["longer"]["t"]["l_acc"]["value"] == (1 + 0 + 0 + 0.5) / 4
    low, high = wilson(0.75, 4)
    assert found["first_side"]["t"] == {"num_pairs": 4, "l_acc": {"value": 0.75, "low": low, "high": high}}


def test_pairs_of_one_prompt_widen_the_interval():
    records = [_record(n, label="AAAB"[n % 4], prompt_id=n) for n in range(100)]
    widths = []
    for tests in ({"t": records}, {"t": [record for record in records for _ in range(3)]}):
        interval = baselines_of(tests)["first_side"]["t"]["l_acc"]
        widths.append(interval["high"] - interval["low"])
    assert widths[0] == pytest.approx(widths[1], rel=0.02)


def test_a_rule_that_cannot_decide_every_pair_is_left_out():
    records = [_record(0, cue_side="A"), _record(1, cue_side=None), {**_record(2), "response_B": None}]
    assert set(baselines_of({"t": records})) == {"first_side"}
    assert set(baselines_of({"t": records[:1]})) == {"longer", "first_side", "cue"}
    assert baselines_of({"t": []}) == baselines_of({}) == {}


def test_the_cue_of_judgeworld_is_as_good_as_its_settings_say():
    world = build_judgeworld(JudgeWorldConfig(num_train=1, num_warm_start=1, num_dev=1, num_test=200))
    names = ("in_distribution", "unbiased", "adversarial")
    cue = baselines_of({name: world[name] for name in names})["cue"]
    assert [cue[name]["l_acc"]["value"] for name in names] == [0.95, 0.5, 0.05]


def test_every_table_shows_the_rules_and_none_takes_them_for_models(tmp_path, capsys):
    path = tmp_path / "t.jsonl"
    records = [_record(n, label="AB"[n % 2], cue_side="B") for n in range(40)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    _main(["score", str(path), "--draws", "10", "--out", f"{tmp_path}/out"])
    text = capsys.readouterr().out
    page = (tmp_path / "out" / "index.html").read_text()
    for title in ("no model: the longer response", "no model: always A", "no model: the cue's side"):
        assert f"({title})" in text and f"({title})" in page.replace("&#39;", "'")
    summary = read_summary(tmp_path / "out" / "summary.json")
    assert list(summary["models"]) == ["judge"] and "comparisons" not in summary
    assert summary["baselines"]["cue"]["t"]["l_acc"]["value"] == 0.5
    assert "always" not in (tmp_path / "out" / "metrics.csv").read_text()
