"""Flip rates and the worst group in every report."""

import csv
import io
import json

import pytest
from ralign.engine.judging.metrics import flip_rates, measure
from ralign.engine.report.browser import write_browser
from ralign.engine.report.html import write_html
from ralign.engine.report.metrics_csv import write_csv
from ralign.engine.report.summary import flip_rows, make_summary, read_summary, write_summary
from ralign.engine.report.terminal import print_summary
from ralign.engine.runtime.errors import UserError
from rich.console import Console


def _result(num_flips=None):
    """Ten pairs, all right, of which the cue misleads in four; `num_flips` verdicts of eight change."""
    labels = ["A"] * 10
    result = measure(labels, labels, ["Correct"] * 10, cue_sides=["B"] * 4 + ["A"] * 6)
    if num_flips is not None:
        twins = [{"cues": "B"}] * num_flips + [{"cues": "A"}] * (8 - num_flips) + [{"cues": None}, {}]
        result["flip_rate"] = flip_rates(labels, twins)
    return result


@pytest.fixture
def summary():
    models = {"sft": {"dev": _result()}, "rlvr": {"dev": _result(6)}, "r_align": {"dev": _result(0)}}
    models["rlvr"]["dev"]["subsets"] = {"x": _result(2)}
    return make_summary(models, seed=0, time_s={})


def test_the_summary_holds_them_and_is_read_back(summary, tmp_path):
    write_summary(summary, tmp_path / "summary.json")
    assert read_summary(tmp_path / "summary.json") == summary
    assert summary["models"]["rlvr"]["dev"]["flip_rate"]["cues"]["value"] == 0.75
    assert summary["models"]["sft"]["dev"]["num_worst_group"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(flip_rate=5), "flip_rate: expected an object, got 5"),
        (lambda r: r["flip_rate"]["cues"].pop("num_without_twin"), "flip_rate of cues needs num_pairs"),
        (lambda r: r["flip_rate"]["cues"].update(value=75), "flip_rate of cues is not a fraction"),
        (lambda r: r["flip_rate"]["cues"].update(more=1), "flip_rate of cues needs value, low and high"),
        (lambda r: r["worst_group_l_acc"].update(value=2), "worst_group_l_acc is not a fraction"),
        (lambda r: r.pop("f_score"), "missing or unknown fields: f_score"),
        (lambda r: r.update(flips=1), "missing or unknown fields: flips"),
    ],
)
def test_another_format_is_refused(summary, tmp_path, change, message):
    change(summary["models"]["rlvr"]["dev"])
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(summary))
    with pytest.raises(UserError, match=message):
        read_summary(path)


def test_the_terminal_has_a_column_and_a_row_for_each_model_and_kind(summary):
    text = io.StringIO()
    print_summary(summary, Console(file=text, width=80))
    lines = [line.split() for line in text.getvalue().splitlines()]
    heading = text.getvalue().splitlines()[2]
    assert "Worst group" in heading and "Flip rate, cues" in heading and "Worst-group pairs" in heading
    (row,) = [line for line in lines if line[:3] == ["dev", "RLVR", "cues"]]
    assert row[3] == "75.0" and row[-3:] == ["8", "1", "1"]
    assert not [line for line in lines if line[:2] == ["dev", "SFT"]]  # its twins were not judged
    assert "75.0 [" in next(line for line in text.getvalue().splitlines() if line.split()[:1] == ["RLVR"])


def test_both_pages_have_them(summary, tmp_path):
    figures = [write_html(summary, tmp_path / "report.html", title="t")]
    figures.append(write_browser(summary, {}, tmp_path / "index.html"))
    for page in (path.read_text() for path in figures):
        assert "Flip rate, cues" in page and "Worst group" in page and "Worst-group pairs" in page
        assert "Verdicts that change with the surface" in page and "<td>Without" not in page
        assert page.count("75.0") == 2  # in the table of judges, and with its counts


def test_the_table_for_data_frames_has_the_same_columns_in_each_row(summary, tmp_path):
    with write_csv(summary, tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ["flip_rate.cues", "flip_rate.cues_num_without_twin", "num_worst_group", "worst_group_l_acc"]
    assert [[row[name] for name in names] for row in rows] == [
        ["", "", "4", "1.0"], ["0.75", "1", "4", "1.0"], ["0.25", "1", "4", "1.0"], ["0.0", "1", "4", "1.0"],
    ]  # fmt: skip


def test_without_twins_and_cues_reports_are_as_before():
    labels = ["A", "B"]
    summary = make_summary({"m": {"t": measure(labels, labels, ["Correct"] * 2)}}, seed=0, time_s={})
    text = io.StringIO()
    print_summary(summary, Console(file=text, width=80))
    assert flip_rows(summary) == [] and "lip" not in text.getvalue() and "orst" not in text.getvalue()
