import json
from types import SimpleNamespace

from ralign.engine.config.run import GenRMRun
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld
from ralign.engine.judging.metrics import measure
from ralign.engine.report.metrics_log import MetricsLog
from ralign.engine.report.progress import Progress
from ralign.recipes.common.report import write_judges_report


def _write(tmp_path, rewards, *, is_first_rank=True):
    """The report of a judge that is always right, on the first 8 of 20 pairs; None on other ranks."""
    world = build_judgeworld(JudgeWorldConfig(num_train=1, num_warm_start=1, num_dev=1, num_test=20))
    run = GenRMRun(name="run", out=str(tmp_path))
    run.eval.num_pairs = 8
    MetricsLog(run.folder / "r_align" / "metrics.jsonl").write(1, {"reward/mean": 0.5})
    (run.folder / "config.json").write_text("{}")
    session = SimpleNamespace(
        cluster=SimpleNamespace(is_first_rank=is_first_rank), progress=Progress(enabled=False)
    )
    labels = [pair.gt_label for pair in world["unbiased"][:8]]
    models = {"r_align": {"unbiased": measure(labels, labels, ["Correct"] * 8)}}
    tests = {"unbiased": [SimpleNamespace(pair=pair) for pair in world["unbiased"]]}
    write_judges_report(SimpleNamespace(run=run, session=session), models, tests, rewards=rewards)
    path = run.folder / "report" / "summary.json"
    return json.loads(path.read_text()) if path.exists() else None, labels


def test_baselines_are_on_the_pairs_that_were_judged_and_the_metarm_is_named(tmp_path, capsys):
    summary, labels = _write(tmp_path, ("label", "r_align"))
    first_side = summary["baselines"]["first_side"]["unbiased"]
    assert first_side["num_pairs"] == 8 and first_side["l_acc"]["value"] == labels.count("A") / 8
    assert set(summary["baselines"]) == {"longer", "first_side", "cue"} and list(summary["models"]) == [
        "r_align"
    ]
    (note,) = summary["notes"]
    assert "The MetaRM that paid in training (rule)" in note
    assert "(no model: always A)" in capsys.readouterr().out


def test_a_reward_from_labels_alone_needs_no_note_and_other_ranks_write_nothing(tmp_path):
    assert _write(tmp_path / "other", ("r_align",), is_first_rank=False)[0] is None
    assert "notes" not in _write(tmp_path, ("label",))[0]
