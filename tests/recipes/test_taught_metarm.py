"""A language model that was trained to audit takes the rule's place: it agrees with the rule, and R-Align works."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ralign.engine.data.verdicts import verdict_of
from ralign.engine.judging.metarm import Outcome, RuleMetaRM
from ralign.engine.judging.metrics import measure

pytestmark = pytest.mark.usefixtures("two_gpus")  # on a GPU machine; on a CPU nothing is needed

RECIPES = Path(__file__).parents[2] / "recipes"
TESTS = ("in_distribution", "unbiased", "adversarial")


def run(*command: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def by_the_rule(path: Path) -> tuple[dict, float]:
    """The metrics of a file of judgments with the rule as MetaRM, and how often the run's MetaRM agrees with it."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    verdicts = [verdict_of(record["model_judgment"]) for record in records]
    labels = [record["gt_label"] for record in records]
    rule, same = RuleMetaRM(), []
    outcomes = [Outcome.SKIPPED] * len(records)
    for n, record in enumerate(records):
        if verdicts[n] == labels[n]:
            outcomes[n] = rule.outcome(record["gt_judgment"], record["model_judgment"])
            same.append(record["metarm_verdict"] == outcomes[n].value)
    return measure(verdicts, labels, outcomes), sum(same) / max(len(same), 1)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_taught_metarm_agrees_with_the_rule_and_r_align_with_it_halves_spurious_correctness(tmp_path):
    """Both recipes as they are; both arms of RL from one warm start, with equal budgets."""
    run(str(RECIPES / "metarm_mini.py"), f"out={tmp_path}/metarm")
    report = json.loads((tmp_path / "metarm" / "report.json").read_text())
    assert report["num_cases"] == 512 and report["agreement"] >= 0.95

    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    metarm = ["metarm.kind=managed", f"metarm.model={tmp_path}/metarm/hf"]
    first = ["data.world.edition=1", "sft.golden_share=0.5", "arms=rlvr,r_align"]  # what metarm_mini teaches
    run(*launch, str(RECIPES / "r_align_mini.py"), f"out={tmp_path}", *metarm, *first)
    for test in TESTS:
        (rlvr, _), (r_align, agreement) = (
            by_the_rule(tmp_path / "r_align_mini" / name / f"judgments_{test}.jsonl")
            for name in ("rlvr", "r_align")
        )
        print(
            test, {name: found["s_corr"]["value"] for name, found in (("rlvr", rlvr), ("r_align", r_align))}
        )
        assert agreement >= 0.95, test
        assert r_align["s_corr"]["value"] <= rlvr["s_corr"]["value"] / 2, test
