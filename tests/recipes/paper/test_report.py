"""The paper's report: correlations by hand and against scipy, and that nothing of the tables is lost on the page."""

import json

import numpy as np
import pytest
from matplotlib.colors import to_hex
from ralign.engine.judging.metrics import measure
from ralign.engine.report import plots
from ralign.engine.runtime.errors import UserError
from ralign.recipes.paper.correlation import correlation, points, pooled, pooled_table
from ralign.recipes.paper.plots import judge_colors
from ralign.recipes.paper.report import actor_table, main, read_summaries, seeds_table, write_paper_report

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
    gain = points(judges, actors, "f_score", "gain")
    assert gain[:, 0] == pytest.approx(xy[:, 0]) and gain[:, 1] == pytest.approx(xy[:, 1] - 0.6)


def test_the_table_says_how_many_comparisons_an_opinion_rests_on(found):
    judges, actors = found
    actors["by_sft"] |= {"win_rate_before": actors["by_sft"]["quality"], "win_rate": None}
    actors["by_sft"] |= {"num_decided_before": 61, "num_decided": 0, "num_compared": 64}
    heading, *rows = actor_table(judges, actors)
    row = dict(zip(heading, rows[1], strict=True))
    assert row["its opinion"] == "66.0 to –" and row["decided"] == "61 and 0 of 64"
    assert rows[0][heading.index("decided")] == "–"  # nobody judged the warm start


def _summary(found, seed, *, shift=0.0, turned=False):
    """A seed's summary: the qualities moved by `shift`, or in the reverse order of their judges."""
    judges, actors = found
    paid = [name for name in actors if name != "start"]
    values = [actors[name]["quality"]["value"] for name in paid]
    moved = dict(zip(paid, values[::-1] if turned else values, strict=True)) | {"start": 0.6}
    actors = {name: _actor(actor["judge"], moved[name] + shift) for name, actor in actors.items()}
    return {"models": judges, "actors": actors, "seed": seed}


def test_a_seed_s_own_level_is_no_part_of_a_gain(found):
    pool = pooled([_summary(found, 0), _summary(found, 1, shift=0.3), _summary(found, 2, shift=-0.2)])
    assert pool["seeds"] == [0, 1, 2] and pool["num_actors"] == 15
    for name in ("l_acc", "f_score"):
        r = correlation(points(*found, name))["value"]
        assert [seed[name] for seed in pool["per_seed"].values()] == pytest.approx([r] * 3)
        # Seeds that differ in level alone have one r of gains; with levels it is smaller.
        assert pool["gain"][name]["value"] == pytest.approx(r) and pool["quality"][name]["value"] < r
    assert pool["gain"]["difference"]["value"] > 0


def _bootstrap(of_seeds, num_draws=4000):
    """r over drawn seeds and in each its drawn actors, one draw after the other."""
    rng, found = np.random.default_rng(7), []
    for _ in range(num_draws):
        seeds = [of_seeds[i] for i in rng.integers(0, len(of_seeds), len(of_seeds))]
        xy = np.concatenate([seed[rng.integers(0, len(seed), len(seed))] for seed in seeds])
        if np.ptp(xy[:, 0]) and np.ptp(xy[:, 1]):
            found.append(np.corrcoef(xy.T)[0, 1])
    return np.quantile(found, (0.025, 0.975))


def test_intervals_are_those_of_draws_of_seeds_and_of_their_actors(found):
    seeds = [_summary(found, 0), _summary(found, 1, turned=True), _summary(found, 2, shift=0.1)]
    del seeds[1]["actors"]["by_sft"]  # seeds need not have the same actors
    for name in ("l_acc", "f_score"):
        got = pooled(seeds)["gain"][name]
        wanted = _bootstrap([points(seed["models"], seed["actors"], name, "gain") for seed in seeds])
        # The tails' density is above 0.1 here: 4,000 draws place a quantile of 2.5 % within 3 * 0.025 of itself.
        assert [got["low"], got["high"]] == pytest.approx(wanted, abs=0.075)
        assert got["low"] < got["value"] < got["high"]


def test_what_has_no_spread_has_no_correlation(found):
    judges, actors = found
    for judge in judges.values():
        judge["in_distribution"] = {
            **judge["in_distribution"],
            "l_acc": {"value": 0.9, "low": 0.9, "high": 0.9},
        }
    pool = pooled([_summary((judges, actors), seed) for seed in (0, 1)])
    assert pool["gain"]["l_acc"] == pool["gain"]["difference"] == {"value": None, "low": None, "high": None}
    assert pooled_table(pool)[1][1] == "–" and pool["gain"]["f_score"]["value"] > 0.9


def test_the_command_reads_several_runs(found, tmp_path, capsys):
    paths = []
    for seed in (1, 0, 2):
        paths.append(str(tmp_path / f"seed{seed}.json"))
        (tmp_path / f"seed{seed}.json").write_text(json.dumps(_summary(found, seed, shift=0.1 * seed)))
    main([*paths, "--out", str(tmp_path / "pool")])
    shown = capsys.readouterr().out
    summaries = read_summaries(paths)
    assert [summary["seed"] for summary in summaries] == [0, 1, 2]
    written = json.loads((tmp_path / "pool" / "pooled.json").read_text())
    assert written == json.loads(json.dumps(pooled(summaries)))
    assert (tmp_path / "pool" / "correlation.png").stat().st_size > 1000
    assert len(seeds_table(summaries)) == 1 + 3 * 6
    for row in (*seeds_table(summaries), *pooled_table(written)):
        assert all(cell in shown for cell in row), row
    assert "intervals are too narrow" in shown


@pytest.mark.parametrize(
    ("text", "said"), [(None, "cannot read"), ("{", "not JSON"), ("{}", "not a summary")]
)
def test_what_is_no_summary_is_named(found, tmp_path, text, said):
    path = tmp_path / "summary.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_summaries([path])


def test_a_seed_counts_once(found, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(json.dumps(_summary(found, 7)))
    with pytest.raises(UserError, match="b: seed 7 is a duplicate"):
        read_summaries([tmp_path / "a", tmp_path / "b"])


def test_the_report_holds_every_actor_and_every_transcript(found, tmp_path, capsys):
    judges, actors = found
    for part in ("judges", "actors"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps({"token_budget": f"that of {part}"}))
    whole = write_paper_report(
        tmp_path, judges, actors, {"by_sft, step00030": "<b>an answer</b>"}, seed=0, time_s={"sft": 1.0}
    )
    report = tmp_path / "report"
    assert json.loads((report / "summary.json").read_text()) == whole
    assert {"judges.png", "actors.png", "correlation.png", "index.html"} <= {p.name for p in report.iterdir()}
    page, shown = (report / "index.html").read_text(), capsys.readouterr().out
    assert "that of judges" in page and "that of actors" in page
    assert "&lt;b&gt;an answer&lt;/b&gt;" in page and page.count("data:image/png") == 3
    for row in actor_table(judges, actors)[1:]:
        assert all(cell in page and cell in shown for cell in row), row


def test_every_judge_has_a_colour_of_its_own():
    names = ["sft", *(f"{method}_{budget}" for method in ("rlvr", "r_align") for budget in (10, 20, 40, 80))]
    colors = judge_colors(names)
    assert colors.keys() == set(names) and len({to_hex(color) for color in colors.values()}) == len(names)
    assert (
        judge_colors(["rlvr_80", "rlvr_9"])["rlvr_9"][1] > judge_colors(["rlvr_80", "rlvr_9"])["rlvr_80"][1]
    )
