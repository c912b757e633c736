"""The paper's report: correlations by hand and against scipy, and that nothing of the tables is lost on the page."""

import json

import numpy as np
import pytest
from ralign.engine.judging.metrics import measure
from ralign.engine.report import plots
from ralign.engine.report.paper import actor_table, correlation, points, pooled, write_paper_report

_TESTS = ("in_distribution", "unbiased")


def _judge(l_acc, s_corr):
    """200 pairs judged, so many per cent right, and of those so many per cent for a wrong reason."""
    num_right = 2 * l_acc
    num_wrong_reason = round(num_right * s_corr / 100)
    verdicts = ["A"] * num_right + ["B"] * (200 - num_right)
    outcomes = ["Incorrect"] * num_wrong_reason + ["Correct"] * (num_right - num_wrong_reason)
    return measure(verdicts, ["A"] * 200, outcomes + ["SkippedLabelMismatch"] * (200 - num_right))


def _actor(judge, quality):
    interval = {"value": quality, "low": quality - 0.02, "high": quality + 0.02}
    steps = [
        {"step": n, "reward/mean": 0.1 * n, "actor/quality": quality, "actor/cue_share": None} for n in (1, 2)
    ]
    return {"judge": judge, "quality": interval, "cue_share": interval, "steps": steps if judge else []}


@pytest.fixture
def found(monkeypatch):
    monkeypatch.setattr(plots, "_DPI", 50)
    judges = {
        name: {test: _judge(l_acc, s_corr) for test in _TESTS}
        for name, (l_acc, s_corr) in {
            "sft": (88, 50), "rlvr_10": (95, 80), "rlvr_40": (95, 100), "r_align_10": (96, 5), "r_align_40": (97, 0),
        }.items()
    }  # fmt: skip
    qualities = {"sft": 0.66, "rlvr_10": 0.62, "rlvr_40": 0.6, "r_align_10": 0.78, "r_align_40": 0.8}
    actors = {"start": _actor(None, 0.6)} | {f"by_{name}": _actor(name, q) for name, q in qualities.items()}
    return judges, actors


def test_a_correlation_and_its_interval_are_those_of_the_book():
    x = np.array([1.0, 2, 3, 4, 5, 6])
    y = np.array([1.0, 3, 2, 5, 4, 6])
    r = correlation(np.stack([x, y], 1))
    # Ranks without ties: 1 - 6 * sum(d^2) / (n (n^2 - 1)), and atanh(r) +- 1.96 / sqrt(n - 3).
    assert r["value"] == pytest.approx(1 - 6 * 4 / (6 * 35)) and r["num"] == 6
    assert np.arctanh(r["high"]) - np.arctanh(r["value"]) == pytest.approx(1.96 / np.sqrt(3))
    assert np.arctanh(r["value"]) - np.arctanh(r["low"]) == pytest.approx(1.96 / np.sqrt(3))


def test_no_correlation_is_claimed_of_too_few_points_or_of_none_that_differ():
    assert correlation(np.array([[1.0, 2], [2, 3], [3, 4]])) is None
    assert correlation(np.array([[1.0, 2], [1, 3], [1, 4], [1, 5]])) is None
    assert correlation(np.array([[1.0, 1], [2, 2], [3, 3], [4, 4]]))["high"] <= 1


def test_the_points_are_each_paid_actor_and_its_judge(found):
    judges, actors = found
    xy = points(judges, actors, "f_score")
    assert len(xy) == 5 and xy[1] == pytest.approx([0.95 * 0.2, 0.62], abs=0.01)
    summary = {"models": judges, "actors": actors}
    assert pooled([summary, summary])["f_score"]["num"] == 10
    assert pooled([summary])["f_score"]["value"] > pooled([summary])["l_acc"]["value"]


def test_the_report_holds_every_actor_and_every_transcript(found, tmp_path, capsys):
    judges, actors = found
    (tmp_path / "judges").mkdir()
    (tmp_path / "judges" / "config.json").write_text("{}")
    whole = write_paper_report(
        tmp_path, judges, actors, {"by_sft, step00030": "<b>an answer</b>"}, seed=0, time_s={"sft": 1.0}
    )
    report = tmp_path / "report"
    assert json.loads((report / "summary.json").read_text()) == whole
    assert {"judges.png", "actors.png", "correlation.png", "index.html"} <= {p.name for p in report.iterdir()}
    page, shown = (report / "index.html").read_text(), capsys.readouterr().out
    assert "&lt;b&gt;an answer&lt;/b&gt;" in page and page.count("data:image/png") == 3
    for row in actor_table(judges, actors)[1:]:
        assert all(cell in page and cell in shown for cell in row), row
