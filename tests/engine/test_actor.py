"""The actor's task on the trainer's step: who pays, what is masked, what is counted. No model is needed."""

import re
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ralign.engine.actor import ActorExample, ActorTask
from ralign.engine.actor_config import ActorRun, check_actor
from ralign.engine.config import AlgoConfig, JudgeConfig
from ralign.engine.data.actorworld import build_notes, judge_pair
from ralign.engine.data.judgeworld import JudgeWorldConfig, cue_judge, oracle_judge
from ralign.engine.errors import UserError
from ralign.engine.generator.generator import Rollout
from ralign.engine.judging.comparisons import Schedule
from ralign.engine.judging.judge import JudgeStopped, Reply, Usage
from ralign.engine.judging.pairwise import PairwiseReward
from ralign.engine.tasks import Answered
from ralign.engine.trainer import Trainer

NOTES = build_notes(JudgeWorldConfig(num_train=8, num_dev=1, num_test=1))["train"]
_PROMPT = re.compile(r"Note:\n(.*)\nA:\n(.*)\nB:\n(.*)\nJudgment:\n", re.DOTALL)


class RuleJudge:
    """A judge that is a function of the pair; `fails` says which of its calls are lost."""

    def __init__(self, rule, fails=lambda n: False):
        self.rule, self.fails, self.usage, self.stop_reason, self.num_asked = rule, fails, Usage(), None, 0

    def submit(self, request):
        ((_, prompt),) = request.messages
        note, a, b = _PROMPT.fullmatch(prompt).groups()
        self.num_asked += 1
        future: Future = Future()
        pair = judge_pair(SimpleNamespace(id="n", prompt=note), a, b)
        failed = self.fails(self.num_asked)
        future.set_result(Reply(failed=failed, text="" if failed else self.rule(pair)))
        return future

    def close(self):
        pass


class OneRank:
    replica_groups: tuple = ()

    def all_gather_data(self, value):
        return [value]


class NoPolicy:
    pad_multiple = 1
    hf_config = SimpleNamespace(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=32,
    )  # fmt: skip

    def start_training(self, optim, num_steps):
        pass


def answers_to(note) -> list[str]:
    """Right in sentences, one fact missing, right in bullets, wrong in bullets."""
    items = list(note.facts)
    told = [f"The {item} is {value}." for item, value in note.facts.items()]
    bullets = "\n".join(f"- {line[:-1]}" for line in told)
    return [" ".join(told), " ".join(told[:-1]), bullets, f"- The {items[0]} is nothing"]


def make_task(judge=None, scheme="all_pairs", **settings):
    run = ActorRun(
        algo=AlgoConfig(reward="label", num_prompts=2, num_samples=4), judge=JudgeConfig(**settings)
    )
    examples = [ActorExample(question=note, prompt_ids=np.arange(5)) for note in NOTES]
    payer = judge and PairwiseReward(judge, Schedule(scheme=scheme, num_samples=4))
    return run, examples, ActorTask(run, examples, payer, OneRank())


def make_samples(examples):
    def rollout(n):
        return Rollout(
            prompt_index=n // 4, response_ids=np.full(3 + n, 10 + n), logprobs=np.zeros(3 + n, np.float32),
            finish_reason="stop", weight_version=0,
        )  # fmt: skip

    return [
        Answered(
            example=n // 4,
            group=n // 4,
            rollout=rollout(n),
            text=answers_to(examples[n // 4].question)[n % 4],
        )
        for n in range(8)
    ]


def paid(task, samples):
    with task.judging():
        return task.reward(task.judge(samples))


def test_the_oracle_pays_true_quality():
    _, examples, task = make_task()
    rewards = paid(task, make_samples(examples))
    np.testing.assert_allclose(rewards.values, [1, 2 / 3, 1, 0] * 2, rtol=1e-6)
    assert rewards.valid.all() and rewards.cue.tolist() == [False, False, True, True] * 2
    metrics = task.metrics(rewards)
    assert metrics["actor/quality"] == pytest.approx(2 / 3) and metrics["actor/perfect_share"] == 0.5
    assert metrics["actor/reward_quality_corr"] == pytest.approx(1) and metrics["judge/num_calls"] == 0


def test_a_judge_that_loves_the_cue_is_hacked_and_the_log_shows_it():
    def loves_bullets(pair):
        return cue_judge(pair) if pair.response_A.startswith("- ") != pair.response_B.startswith("- ") else ""

    _, examples, task = make_task(RuleJudge(loves_bullets), max_failed_share=0.5)
    rewards = paid(task, make_samples(examples))
    # Bullets beat both answers without; the pairs of equal layout have no verdict and are masked.
    assert rewards.values.tolist() == [-1, -1, 1, 1] * 2
    metrics = task.metrics(rewards)
    assert metrics["judge/num_unparsable"] == metrics["judge/num_masked"] == 4
    assert metrics["actor/reward_quality_corr"] < 0


@pytest.mark.parametrize("scheme", ["reference", "circular", "all_pairs", "knockout"])
def test_a_group_costs_what_its_schedule_says(scheme):
    judge = RuleJudge(lambda pair: r"\boxed{A}")
    _, examples, task = make_task(judge, scheme)
    samples = make_samples(examples)
    metrics = task.metrics(paid(task, samples))
    per_group = Schedule(scheme=scheme, num_samples=4).num_calls
    equal = (
        2 if scheme == "reference" else 0
    )  # the first answer is the reference itself: a tie without a call
    assert metrics["judge/num_calls"] == 2 * per_group
    assert judge.num_asked == 2 * per_group - equal
    assert answers_to(examples[0].question)[0] == examples[0].question.reference


def test_failed_calls_mask_and_the_step_goes_on_with_the_survivors():
    """A sample whose comparisons all failed has no advantage, and changes nobody else's."""
    run, examples, task = make_task(
        RuleJudge(_better, fails=lambda n: n == 1), "reference", max_failed_share=0.5
    )
    cluster = SimpleNamespace(dp_size=1, dp_rank=0, pp_size=1, device=torch.device("cpu"))
    trainer = Trainer(run, cluster, NoPolicy(), None, None, examples, task)
    with task.judging():
        judged = task.judge(make_samples(examples))
    rewards = task.reward(judged)
    assert (~rewards.valid).sum() == task.metrics(rewards)["judge/num_failed"] == 1
    lost = int(np.flatnonzero(~rewards.valid)[0])
    survivors = [sample for n, sample in enumerate(judged) if n != lost]

    def advantages(batch):
        found = {}
        for micro_batch in trainer.plan(batch, task.reward(batch))[0]:
            for token in micro_batch.targets[micro_batch.targets >= 10].unique().tolist():
                rows = micro_batch.targets == token
                found[token] = tuple(
                    micro_batch.per_token[k][rows].sum().item() for k in ("advantages", "weights")
                )
        return found

    with_failure, without = advantages(judged), advantages(survivors)
    assert with_failure.pop(10 + lost) == (0, 0)
    assert with_failure.keys() == without.keys()
    for token, sums in without.items():
        assert with_failure[token] == pytest.approx(sums)


def _better(pair):
    wrong = [text.count("nothing") + (text.count("The") < 3) for text in (pair.response_A, pair.response_B)]
    return r"\boxed{A}" if wrong[0] < wrong[1] else r"\boxed{B}"


def test_too_many_failures_end_the_run_and_a_stopped_judge_is_heard_of():
    judge = RuleJudge(oracle_judge, fails=lambda n: True)
    _, examples, task = make_task(judge, max_failed_share=0.2)
    with pytest.raises(UserError, match="12 of 12 calls"):
        paid(task, make_samples(examples))
    before = task.state_dict()
    judge.stop_reason = "the key is refused"
    with pytest.raises(JudgeStopped, match="key"):
        paid(task, make_samples(examples))
    assert task.state_dict() == before


def test_each_batch_draws_anew_and_a_checkpoint_keeps_the_place():
    _, examples, task = make_task(RuleJudge(_better), "circular")
    paid(task, make_samples(examples))
    seed = task._seed()
    _, _, resumed = make_task(RuleJudge(_better), "circular")
    assert resumed._seed() != seed
    resumed.load_state_dict(task.state_dict())
    assert resumed._seed() == seed


def test_a_judge_that_cannot_be_asked_is_refused(tmp_path):
    run = ActorRun()
    check_actor(run)
    run.actor.genrm = str(tmp_path)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        check_actor(run)
    (tmp_path / "config.json").write_text("{}")
    check_actor(run)
    run.parallel.tensor = 2
    with pytest.raises(UserError, match="managed"):
        check_actor(run)
    run.actor.judge = "endpoint"
    with pytest.raises(UserError, match="base_url"):
        check_actor(run)
    run.algo.num_samples = 2
    with pytest.raises(UserError, match="at least 3"):
        check_actor(run)
