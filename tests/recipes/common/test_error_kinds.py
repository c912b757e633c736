import json

from ralign.engine.data.worlds.config import JudgeWorldConfig
from ralign.engine.data.worlds.judgeworld import build_judgeworld, cue_judge
from ralign.recipes.common.error_kinds import count_kinds, write_error_kinds

PAIRS = build_judgeworld(JudgeWorldConfig(edition=2, num_train=3, num_warm_start=1, num_dev=1, num_test=1))[
    "train"
]


def records(judgments, outcomes):
    return [
        {"gt_judgment": pair.gt_judgment, "model_judgment": judgment, "metarm_verdict": outcome}
        for pair, judgment, outcome in zip(PAIRS, judgments, outcomes, strict=True)
    ]


def test_only_right_verdicts_with_an_incorrect_rationale_count():
    cue = [cue_judge(pair) for pair in PAIRS]
    assert count_kinds(records(cue, ["Incorrect", "SkippedLabelMismatch", "CallFail"])) == {"no reason": 1}
    golden = [pair.gt_judgment for pair in PAIRS]
    assert count_kinds(records(golden, ["Correct", "Correct", "Incorrect"])) == {"not by the rule": 1}


def test_the_first_edition_has_no_kinds():
    (pair, *_) = build_judgeworld(JudgeWorldConfig(num_train=1, num_warm_start=1, num_dev=1, num_test=1))[
        "train"
    ]
    record = {
        "gt_judgment": pair.gt_judgment,
        "model_judgment": cue_judge(pair),
        "metarm_verdict": "Incorrect",
    }
    assert not count_kinds([record])


def test_the_file_has_every_model_and_test_and_the_line_the_most_frequent_kind(tmp_path):
    (tmp_path / "report").mkdir()
    for model, judge in (("cue", cue_judge), ("golden", lambda pair: pair.gt_judgment)):
        (tmp_path / model).mkdir()
        outcome = "Incorrect" if model == "cue" else "Correct"
        lines = [json.dumps(record) for record in records([judge(pair) for pair in PAIRS], [outcome] * 3)]
        (tmp_path / model / "judgments_unbiased.jsonl").write_text("\n".join(lines))
    line = write_error_kinds(tmp_path, ["cue", "golden"], ["unbiased"])
    assert line == "most frequent error of rationales: cue: no reason"
    found = json.loads((tmp_path / "report" / "error_kinds.json").read_text())
    assert found == {"cue": {"unbiased": {"no reason": 3}}, "golden": {"unbiased": {}}}
