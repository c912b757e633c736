"""The summary and what is made from it: tables, plots, the page."""

import html
import io
import json
import re
from copy import deepcopy

import numpy as np
import pytest
from matplotlib.image import imread
from ralign.engine.judging.metrics import measure
from ralign.engine.report import plots
from ralign.engine.report.html import write_html
from ralign.engine.report.metrics_log import MetricsLog
from ralign.engine.report.plots import plot_judgments, plot_training
from ralign.engine.report.summary import BASELINES, make_summary, read_summary, write_summary
from ralign.engine.report.terminal import print_summary
from ralign.engine.runtime.errors import UserError
from rich.console import Console

_TESTS = ("in_distribution", "unbiased", "adversarial")
_OUTCOMES = ("Correct", "Incorrect", "SkippedLabelMismatch", "CallFail")


def _result(seed, *, swapped=False):
    outcomes = np.random.default_rng(seed).choice(_OUTCOMES, p=(0.6, 0.2, 0.15, 0.05), size=200)
    verdicts = ["B" if outcome == "SkippedLabelMismatch" else "A" for outcome in outcomes]
    return measure(verdicts, ["A"] * 200, outcomes, swapped_verdicts=["B"] * 200 if swapped else None)


@pytest.fixture(autouse=True)
def quick_plots(monkeypatch):
    monkeypatch.setattr(plots, "_DPI", 50)


@pytest.fixture
def summary():
    models = {
        model: {test: _result(10 * m + t) for t, test in enumerate(_TESTS)}
        for m, model in enumerate(("sft", "rlvr", "r_align"))
    }
    return make_summary(models, seed=3, time_s={"sft": 160.0, "rlvr": 75.5})


def test_the_summary_is_the_contract_s(summary, tmp_path):
    write_summary(summary, tmp_path / "report" / "summary.json")
    assert read_summary(tmp_path / "report" / "summary.json") == summary
    assert list(summary) == ["models", "seed", "time_s"] and list(summary["models"]["rlvr"]) == list(_TESTS)
    result = summary["models"]["rlvr"]["unbiased"]
    assert set(result) == {
        "num_pairs", "l_acc", "s_corr", "f_score", "num_parse_fail", "num_judge_fail", "swap_consistency",
    }  # fmt: skip
    assert set(result["l_acc"]) == {"value", "low", "high"} and 0 <= result["l_acc"]["low"] <= 1


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda s: s.pop("seed"), "models, seed and time_s"),
        (lambda s: s["models"]["sft"]["unbiased"].pop("num_pairs"), "sft on unbiased.*num_pairs"),
        (lambda s: s["models"]["sft"]["unbiased"].update(extra=1), "extra"),
        (lambda s: s["models"]["sft"]["unbiased"]["l_acc"].update(value=97.3), "l_acc is not a fraction"),
        (lambda s: s["models"]["sft"]["unbiased"]["s_corr"].pop("low"), "s_corr needs value, low and high"),
        (lambda s: s["models"]["sft"]["unbiased"]["l_acc"].update(value="x"), "l_acc is not a fraction"),
        (lambda s: s["models"]["sft"]["unbiased"].update(l_acc=5), "l_acc: expected an object, got 5"),
        (lambda s: s["models"]["sft"].update(unbiased=[]), r"sft on unbiased: expected an object, got \[\]"),
        (lambda s: s.update(models=5), "models: expected an object, got 5"),
    ],
)
def test_another_shape_is_refused(summary, break_it, said, tmp_path):
    broken = deepcopy(summary)
    break_it(broken)
    (tmp_path / "summary.json").write_text(json.dumps(broken))
    with pytest.raises(UserError, match=said):
        read_summary(tmp_path / "summary.json")
    with pytest.raises(UserError, match=said):
        write_summary(broken, tmp_path / "again.json")


def test_the_terminal_s_tables_hold_every_number(summary):
    stream = io.StringIO()
    print_summary(summary, Console(file=stream, width=40))
    text = stream.getvalue()
    assert "…" not in text and "SFT" in text and "in distribution (200 pairs)" in text and "2m40s" in text
    for tests in summary["models"].values():
        for result in tests.values():
            assert f"{100 * result['s_corr']['value']:.1f} [" in text
    assert "Swap" not in text
    swapped = make_summary({"m": {"t": _result(0, swapped=True)}}, seed=0, time_s={})
    print_summary(swapped, Console(file=stream))
    assert "Swap" in stream.getvalue()


def test_rules_and_notes_are_in_every_form_and_rules_are_no_models(summary, tmp_path):
    interval = {"value": 0.521, "low": 0.4, "high": 0.6}
    baselines = {rule: {"unbiased": {"num_pairs": 200, "l_acc": interval}} for rule in BASELINES}
    parts = {key: summary[key] for key in ("models", "seed", "time_s")}
    whole = make_summary(**parts, baselines=baselines, notes=["Mind the <gap>."])
    write_summary(whole, tmp_path / "summary.json")
    assert read_summary(tmp_path / "summary.json") == whole and whole["baselines"] == baselines
    stream = io.StringIO()
    print_summary(whole, Console(file=stream, width=40))
    text = stream.getvalue()
    write_html(whole, tmp_path / "index.html", title="t")
    page = html.unescape((tmp_path / "index.html").read_text(encoding="utf-8"))
    for title in BASELINES.values():
        assert title.startswith("no model: ") and text.count(f"({title})") == page.count(f"({title})") == 1
    assert "52.1 [40.0, 60.0]" in text and "Note: Mind the <gap>." in text and "Note: Mind the <gap>." in page
    assert "<gap>" not in (tmp_path / "index.html").read_text(encoding="utf-8")
    plot_judgments(whole, tmp_path / "bars.png")
    assert "baselines" not in summary and "notes" not in summary


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"baselines": {"judge": {}}}, "unknown baseline 'judge'"),
        ({"baselines": {"cue": {"t": {"num_pairs": 1}}}}, "cue on t needs num_pairs and l_acc"),
        (
            {"baselines": {"cue": {"t": {"num_pairs": 1, "l_acc": {"value": 2}}}}},
            "l_acc needs value, low and high",
        ),
        ({"notes": "text"}, "notes: expected a list"),
    ],
)
def test_another_shape_of_rules_and_notes_is_refused(summary, extra, said, tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(summary | extra))
    with pytest.raises(UserError, match=said):
        read_summary(tmp_path / "summary.json")


def test_a_metric_without_a_denominator_is_a_dash(tmp_path):
    nothing = measure(["B"], ["A"], ["SkippedLabelMismatch"])
    summary = make_summary({"m": {"t": nothing}}, seed=0, time_s={})
    stream = io.StringIO()
    print_summary(summary, Console(file=stream))
    assert "–" in stream.getvalue()
    plot_judgments(summary, tmp_path / "bars.png")


def _has_color(path, rgb):
    return bool((np.abs(imread(path)[..., :3] * 255 - rgb).max(-1) < 3).any())


def test_bars_show_both_kinds_of_right(summary, tmp_path):
    path = plot_judgments(summary, tmp_path / "new" / "bars.png")
    assert _has_color(path, (0x2A, 0x6F, 0x97)) and _has_color(path, (0xF4, 0xA2, 0x59))
    height, width = imread(path).shape[:2]
    assert width > 1.5 * height
    with pytest.raises(UserError, match="no test"):
        plot_judgments({"models": {}}, path)


@pytest.mark.parametrize(
    "name",
    [
        "$x^$",
        "$\\frac{1}$",
        "\\alpha$",
        "a_b_$_{",
        "$$",
        "%",
        "_",
        "",
        "a\nb",
        "\x1b[31m",
        "\0",
        "\ud800",
        "\u202e",
    ],
    ids=ascii,
)
def test_a_name_may_have_any_characters_mathtext_among_them(summary, tmp_path, name):
    models = {name: {name: summary["models"]["sft"]["unbiased"]}}
    odd = make_summary(models, seed=0, time_s={name: 1.0})
    figure = plot_judgments(odd, tmp_path / "judgments.png")
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 0, "reward/mean": 0.5}\n{"step": 1, "reward/mean": 0.6}\n')
    plot_training({name: log, "other": log}, tmp_path / "curves.png")
    page = write_html(odd, tmp_path / "index.html", title="t", figures={"f": figure}).read_text("utf-8")
    write_summary(odd, tmp_path / "summary.json")
    assert read_summary(tmp_path / "summary.json") == odd
    console = Console(file=io.StringIO(), width=200)
    print_summary(odd, console)
    tables = console.file.getvalue()
    for text in (page, tables):
        assert all(char.isprintable() or char in "\n\xa0" for char in text)


def test_curves_of_what_was_measured(tmp_path):
    logs = {}
    for name in ("rlvr", "r_align"):
        log = MetricsLog(tmp_path / f"{name}.jsonl")
        for step in range(30):
            log.write(step, {"reward/mean": step / 30, "judge/s_corr": float("nan") if step < 3 else 0.4})
        logs[name] = log.path
    two_panels = imread(plot_training(logs, tmp_path / "curves.png"))
    assert _has_color(tmp_path / "curves.png", (0xF0, 0x8A, 0x24))
    log.write(30, {"policy/grad_norm": 1.0})
    assert imread(plot_training(logs, tmp_path / "curves.png")).shape[1] > two_panels.shape[1]
    alone = (tmp_path / "curves.png").read_bytes()
    warm_start = MetricsLog(tmp_path / "sft.jsonl")
    for step in range(500):
        warm_start.write(step, {"policy/grad_norm": 2.0})
    plot_training({"sft": warm_start.path, **logs}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes() == alone
    with pytest.raises(UserError, match="nothing to plot"):
        plot_training({"empty": MetricsLog(tmp_path / "empty.jsonl").path}, tmp_path / "none.png")


def test_the_page_stands_alone_and_escapes_what_models_wrote(summary, tmp_path):
    figure = plot_judgments(summary, tmp_path / "bars.png")
    path = write_html(
        summary,
        tmp_path / "index.html",
        title="A <run>",
        figures={"Right, and why": figure},
        examples={"R-Align": "<script>alert(1)</script> \\boxed{A}"},
        config={"seed": 3},
    )
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page and "A &lt;run&gt;" in page and html.escape("<script>") in page
    assert set(re.findall(r'(?:src|href)="([^,"]*)', page)) == {"data:image/png;base64"}
    for tests in summary["models"].values():
        for result in tests.values():
            assert f"{100 * result['l_acc']['value']:.1f} <span" in page
