import numpy as np
from ralign.engine.data.verdicts import verdict_of
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld, cue_judge
from ralign.engine.evaluation.score import read_files
from ralign.engine.judging.metarm import Outcome, RuleMetaRM
from ralign.engine.training.evaluate import Judgment, summarise, write_judgments


def test_what_a_run_judged_is_read_by_the_evaluator(tmp_path):
    world = build_judgeworld(JudgeWorldConfig(num_train=1, num_warm_start=1, num_dev=1, num_test=60))
    judgments = []
    for number, pair in enumerate(world["unbiased"]):
        text = (pair.gt_judgment, cue_judge(pair), "nothing")[number % 3]
        verdict = verdict_of(text)
        right = verdict == pair.gt_label
        outcome = RuleMetaRM().outcome(pair.gt_judgment, text) if right else Outcome.SKIPPED
        judgments.append(
            Judgment(pair=pair, text=text, verdict=verdict, outcome=outcome, ids=np.array([5]), is_cut=False)
        )
    path = tmp_path / "rlvr" / "judgments_unbiased.jsonl"
    write_judgments(judgments, path)
    (judged,) = read_files([str(path)])["rlvr"].values()
    assert [pair.id for pair in judged] == [pair.id for pair in world["unbiased"]]
    assert [(pair.verdict, pair.outcome) for pair in judged] == [(j.verdict, j.outcome) for j in judgments]
    assert judged[0].record["gt_judgment"] == world["unbiased"][0].gt_judgment
    result = summarise(judgments)
    assert result["f_score"]["value"] == 1 / 3 < result["l_acc"]["value"] < 2 / 3
