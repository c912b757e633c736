"""eval.twins: greedy verdicts on pairs and twins, without reviews: in results, files and watched metrics."""

from types import SimpleNamespace

import numpy as np
import pytest
from ralign.engine.config.command_line import parse
from ralign.engine.config.run import EvalConfig, GenRMRun
from ralign.engine.config.validation import validate
from ralign.engine.data.examples import Example
from ralign.engine.data.worlds.config import JudgeWorldConfig
from ralign.engine.data.worlds.judgeworld import build_judgeworld
from ralign.engine.evaluation.score import read_files, score
from ralign.engine.generator.generator import Rollout
from ralign.engine.judging.metarm import RuleMetaRM
from ralign.engine.runtime.errors import UserError
from ralign.engine.training import genrm as genrm_module
from ralign.engine.training.genrm import GenRM

NUM_PAIRS = 40
WORLD = build_judgeworld(JudgeWorldConfig(num_train=1, num_warm_start=1, num_dev=1, num_test=NUM_PAIRS))


def _answer(side):
    return f"Because. \\boxed{{{side}}}"


JUDGES = {
    "cue": lambda pair: _answer(pair.meta["cue_side"]),
    "oracle": lambda pair: pair.gt_judgment,
    "first": lambda pair: _answer("A"),
    "silent": lambda pair: "I cannot tell.",
}


class Engine:
    """Every prompt is the number of a pair in `seen`; `asked` counts prompts by temperature."""

    def __init__(self, replicas, judge):
        self.replicas, self.judge, self.seen, self.asked = replicas, judge, [], {}

    def generate(self, prompts, *, temperature, on_finished=lambda index, rollout: None, **_):
        self.asked[temperature] = self.asked.get(temperature, 0) + len(prompts)
        rollouts = [
            Rollout(
                prompt_index=n,
                response_ids=np.array(prompt),
                logprobs=np.zeros(1, dtype=np.float32),
                finish_reason="stop",
                weight_version=0,
            )
            for n, prompt in enumerate(prompts)
        ]
        for index, rollout in enumerate(rollouts):
            on_finished(index, rollout)
        return rollouts

    def decode(self, row, **_):
        return self.judge(self.seen[row[0]])

    def encode(self, pairs, *_, **__):
        start = len(self.seen)
        self.seen += pairs
        return [Example(pair=pair, prompt_ids=np.array([start + n])) for n, pair in enumerate(pairs)], 0

    def wake(self):
        pass

    sleep = verify = wake


class CountedMetaRM(RuleMetaRM):
    num_reviews = 0

    def review(self, pair, judgment):
        self.num_reviews += 1
        return super().review(pair, judgment)


@pytest.fixture
def make_genrm(make_session, one_rank, monkeypatch, tmp_path):
    def make(judge, metarm=None, **settings):
        engine = Engine(one_rank, JUDGES[judge])
        monkeypatch.setattr(genrm_module, "encode", engine.encode)
        session = make_session(generator=engine, tokenizer=SimpleNamespace(decode=engine.decode))
        run = GenRMRun(name="run", out=str(tmp_path), eval=EvalConfig(every=1, **settings))
        return GenRM(session, run, metarm or RuleMetaRM()), engine

    return make


@pytest.mark.parametrize(
    ("judge", "flips"),
    [
        ("cue", {"cues": 1, "order": 0}),
        ("oracle", {"cues": 0, "order": 0}),
        ("first", {"cues": 0, "order": 1}),
    ],
)
def test_verdicts_are_counted_where_the_watched_metrics_and_the_files_see_them(
    make_genrm, tmp_path, judge, flips
):
    genrm, engine = make_genrm(judge, twins="cues,order")
    examples, _ = engine.encode(WORLD["unbiased"])
    result = genrm.evaluate("m", {"unbiased": examples})["unbiased"]
    assert {kind: found["value"] for kind, found in result["flip_rate"].items()} == flips
    assert {found["num_pairs"] for found in result["flip_rate"].values()} == {NUM_PAIRS}
    watched = genrm.watch(examples)(1)
    assert watched["eval/flip_rate"] == flips["cues"]  # of the first kind
    assert watched["eval/worst_group_l_acc"] == result["worst_group_l_acc"]["value"]
    judged = read_files([str(tmp_path / "run" / "m" / "judgments_unbiased.jsonl")])
    (rescored,) = score(judged, subset_field="none", cue="marked")["m"].values()
    assert rescored["flip_rate"] == result["flip_rate"]
    assert rescored["worst_group_l_acc"] == result["worst_group_l_acc"]


def test_twins_are_judged_greedily_once_and_without_reviews(make_genrm):
    metarm = CountedMetaRM()
    genrm, engine = make_genrm("oracle", metarm, twins="cues", temperature=0.7)
    examples, _ = engine.encode(WORLD["unbiased"])
    genrm.evaluate("m", {"unbiased": examples})
    assert engine.asked == {0.7: NUM_PAIRS, 0.0: 2 * NUM_PAIRS}
    assert metarm.num_reviews == NUM_PAIRS


def test_a_greedy_evaluation_judges_no_pair_twice(make_genrm):
    genrm, engine = make_genrm("oracle", twins="cues", temperature=0.0, num_pairs=10)
    examples, _ = engine.encode(WORLD["unbiased"])
    result = genrm.evaluate("m", {"unbiased": examples})["unbiased"]
    assert engine.asked == {0.0: 20} and result["flip_rate"]["cues"]["num_pairs"] == 10


def test_without_verdicts_the_watched_rate_is_nan_and_without_twins_absent(make_genrm):
    genrm, engine = make_genrm("silent", twins="cues")
    examples, _ = engine.encode(WORLD["unbiased"])
    assert np.isnan(genrm.watch(examples)(1)["eval/flip_rate"])
    genrm, engine = make_genrm("oracle")
    examples, _ = engine.encode(WORLD["unbiased"])
    assert "eval/flip_rate" not in genrm.watch(examples)(1) and set(engine.asked) == {0.4}


def test_an_unknown_kind_is_refused_before_the_start():
    run = parse(GenRMRun(), ["eval.twins=cues,colour"], "")
    with pytest.raises(UserError, match=r"eval\.twins=colour: expected one of order, cues,"):
        validate(run, 1)
