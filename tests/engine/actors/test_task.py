"""The actor's task on the trainer's step: who pays, what is masked, what is counted. No model is needed."""

import json
import re
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
from ralign.engine.actors.task import NUM_KEPT, ActorExample, ActorTask
from ralign.engine.config.actor import ActorRun
from ralign.engine.config.algo import AlgoConfig
from ralign.engine.config.judge import GenRMConfig
from ralign.engine.data.prompts import FULL, render
from ralign.engine.data.worlds.actorworld import build_notes, judge_pair
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, cue_judge, oracle_judge
from ralign.engine.generator.generator import Rollout
from ralign.engine.judging.comparisons import Schedule
from ralign.engine.judging.judge import Judge, JudgeStopped, Reply
from ralign.engine.judging.pairwise import PairwiseReward
from ralign.engine.runtime.errors import UserError
from ralign.engine.training.sampling import StepSamples
from ralign.engine.training.tasks import Response
from ralign.engine.training.trainer import Trainer

NOTES = build_notes(JudgeWorldConfig(num_train=8, num_dev=1, num_test=1))["train"]
_PROMPT = re.compile(r"Note:\n(.*)\nA:\n(.*)\nB:\n(.*)\nJudgment:\n", re.DOTALL)


class RuleJudge(Judge):
    """A judge that is a function of the pair; `fails` names the calls that are lost. `reason` may be set."""

    def __init__(self, rule, fails=lambda n: False):
        self.rule, self.fails, self.reason, self.num_asked = rule, fails, None, 0

    @property
    def stop_reason(self):
        return self.reason

    def submit(self, request):
        ((_, prompt),) = request.messages
        note, a, b = _PROMPT.fullmatch(prompt).groups()
        self.num_asked += 1
        future: Future = Future()
        pair = judge_pair(SimpleNamespace(id="n", prompt=note), a, b)
        failed = self.fails(self.num_asked)
        future.set_result(Reply(failed=failed, text="" if failed else self.rule(pair)))
        return future


def answers_to(note) -> list[str]:
    """Right in sentences, one fact missing, right in bullets, wrong in bullets."""
    items = list(note.facts)
    told = [f"The {item} is {value}." for item, value in note.facts.items()]
    bullets = "\n".join(f"- {line[:-1]}" for line in told)
    return [" ".join(told), " ".join(told[:-1]), bullets, f"- The {items[0]} is nothing"]


@pytest.fixture
def make_task(one_rank):
    def make(judge=None, scheme="all_pairs", replicas=None, **settings):
        run = ActorRun(algo=AlgoConfig(num_prompts=2, num_samples=4), genrm=GenRMConfig(**settings))
        examples = [ActorExample(question=note, prompt_ids=np.arange(5)) for note in NOTES]
        reward_model = judge and PairwiseReward(judge, Schedule(scheme=scheme, num_samples=4))
        return run, examples, ActorTask(run, examples, reward_model, replicas or one_rank)

    return make


def make_samples(examples):
    def rollout(n):
        return Rollout(
            prompt_index=n // 4, response_ids=np.full(3 + n, 10 + n), logprobs=np.zeros(3 + n, np.float32),
            finish_reason="stop", weight_version=0,
        )  # fmt: skip

    return [
        Response(
            example=n // 4,
            group=n // 4,
            rollout=rollout(n),
            text=answers_to(examples[n // 4].question)[n % 4],
        )
        for n in range(8)
    ]


def rewards_of(task, samples, step=0):
    with task.judging():
        return task.reward(task.judge(samples, step))


def test_the_oracle_pays_true_quality(make_task):
    _, examples, task = make_task()
    rewards = rewards_of(task, make_samples(examples))
    np.testing.assert_allclose(rewards.values, [1, 2 / 3, 1, 0] * 2, rtol=1e-6)
    assert rewards.valid.all() and rewards.cue.tolist() == [False, False, True, True] * 2
    metrics = task.metrics(rewards)
    assert metrics["actor/quality"] == pytest.approx(2 / 3) and metrics["actor/perfect_share"] == 0.5
    assert metrics["actor/reward_quality_corr"] == pytest.approx(1) and metrics["judge/num_calls"] == 0


def test_a_judge_that_loves_the_cue_is_hacked_and_the_log_shows_it(make_task):
    def loves_bullets(pair):
        return cue_judge(pair) if pair.response_A.startswith("- ") != pair.response_B.startswith("- ") else ""

    _, examples, task = make_task(RuleJudge(loves_bullets), max_failed_share=0.5)
    rewards = rewards_of(task, make_samples(examples))
    # Bullets beat both answers without; the pairs of equal layout have no verdict and are masked.
    assert rewards.values.tolist() == [-1, -1, 1, 1] * 2
    metrics = task.metrics(rewards)
    assert metrics["judge/num_unparsable"] == metrics["judge/num_masked"] == 4
    assert metrics["actor/reward_quality_corr"] < 0


@pytest.mark.parametrize("scheme", ["reference", "circular", "all_pairs", "knockout"])
def test_a_group_costs_what_its_schedule_says(make_task, scheme):
    judge = RuleJudge(lambda pair: r"\boxed{A}")
    _, examples, task = make_task(judge, scheme)
    samples = make_samples(examples)
    metrics = task.metrics(rewards_of(task, samples))
    per_group = Schedule(scheme=scheme, num_samples=4).num_calls
    # The first answer is the reference itself: nobody is asked, and it counts apart.
    same = 2 if scheme == "reference" else 0
    assert answers_to(examples[0].question)[0] == examples[0].question.reference
    assert metrics["judge/num_comparisons"] == 2 * per_group and metrics["judge/num_same"] == same
    assert metrics["judge/num_calls"] == judge.num_asked == 2 * per_group - same


def test_failures_are_not_hidden_behind_equal_answers(make_task):
    """An actor that has collapsed to one answer: the few calls that are left all fail, and that ends the run."""
    _, examples, task = make_task(RuleJudge(_better, fails=lambda n: True), "all_pairs", max_failed_share=0.5)
    task.reward_model.schedule = Schedule(scheme="all_pairs", num_samples=8, order="both")
    samples = make_samples(examples)
    for sample in samples:
        sample.group = sample.example = 0
        sample.text = samples[0].text
    samples[-1].text = "something else"
    with pytest.raises(UserError, match="14 of 14 calls"):
        rewards_of(task, samples)


def test_groups_without_a_fit_are_counted(make_task):
    _, examples, task = make_task(RuleJudge(lambda pair: r"\boxed{A}"))
    task.reward_model.schedule = Schedule(
        scheme="all_pairs", num_samples=4, order="agree", value="bradley_terry"
    )
    assert (
        task.metrics(rewards_of(task, make_samples(examples)))["judge/num_without_fit"] == 0
    )  # ties have a fit
    _, examples, task = make_task(RuleJudge(_shorter))
    task.reward_model.schedule = Schedule(scheme="all_pairs", num_samples=4, value="bradley_terry")
    assert task.metrics(rewards_of(task, make_samples(examples)))["judge/num_without_fit"] == 2


def test_a_genrm_is_asked_in_the_messages_that_it_was_trained_on(make_task):
    """Under a template with a rubric: a system message and the user's, whose parts are the text of training."""
    asked = []

    class Listens(RuleJudge):
        def submit(self, request):
            asked.append(request.messages)
            future: Future = Future()
            future.set_result(Reply(text=r"\boxed{A}"))
            return future

    _, examples, task = make_task(Listens(None), "reference")
    task.template = FULL
    samples = make_samples(examples)
    rewards_of(task, samples)
    note, told = examples[0].question, {sample.text for sample in samples}
    for messages in asked[:3]:
        assert [role for role, _ in messages] == ["system", "user"]
        orders = [order for text in told for order in ((text, note.reference), (note.reference, text))]
        rendered = {render(FULL, note.compare(*order)) for order in orders}
        assert "\n\n".join(content for _, content in messages) in rendered


def _shorter(pair):
    return r"\boxed{A}" if len(pair.response_A) < len(pair.response_B) else r"\boxed{B}"


def test_a_length_penalty_stays_out_of_the_rewards_and_comes_after_their_normalisation(
    make_task, make_session
):
    run, examples, task = make_task()
    plain = rewards_of(task, make_samples(examples))
    run.actor.length_penalty, run.generator.max_new_tokens = 0.3, 100
    moved = rewards_of(task, make_samples(examples))
    assert plain.bonus is None and moved.values.tolist() == plain.values.tolist()
    # Three of four are worth something; lengths 3 to 6 (and 7 to 10) around their middle.
    bonus = [0.3 * 0.75 * x / 100 for x in (1.5, 0.5, -0.5, -1.5)] * 2
    np.testing.assert_allclose(moved.bonus, bonus, atol=1e-6)
    trainer = Trainer(make_session(), run, task)
    with_bonus, without = (
        trainer.advantages(
            StepSamples(responses=make_samples(examples), rewards=rewards, learned=np.arange(8), num_rounds=1)
        ).numpy()
        for rewards in (moved, plain)
    )
    np.testing.assert_allclose(with_bonus - without, bonus, atol=1e-6)


def test_what_the_judge_said_is_in_the_record_of_a_few_comparisons(make_task):
    _, examples, task = make_task(
        RuleJudge(_better, fails=lambda n: n == 1), "circular", max_failed_share=0.5
    )
    samples = make_samples(examples)
    with task.judging():
        judged = task.judge(samples, 0)
    records = [task.record(sample) for sample in judged]
    found = {n: record["comparisons"] for n, record in enumerate(records) if "comparisons" in record}
    assert list(found) == [0, 4] and sum(map(len, found.values())) == NUM_KEPT == 8
    json.dumps(records)
    lost = 0
    for first, comparisons in found.items():
        texts = [sample.text for sample in samples[first : first + 4]]
        for one in comparisons:
            assert all(one[seat]["text"] == texts[one[seat]["sample"]] for seat in "AB")
            if one["better"] == "failed":
                lost += 1
            else:
                assert one["reply"] == f"\\boxed{{{one['better']}}}"
    assert lost == 1
    task.replicas.index = 1
    _, examples, elsewhere = make_task(RuleJudge(_better), "circular", replicas=task.replicas)
    with elsewhere.judging():
        assert not any(sample.transcripts for sample in elsewhere.judge(make_samples(examples), 0))


def test_against_a_reference_the_record_says_which_seat_it_had(make_task):
    _, examples, task = make_task(RuleJudge(_better), "reference")
    with task.judging():
        judged = task.judge(make_samples(examples), 0)
    for one in task.record(judged[0])["comparisons"]:
        seats = [one[seat]["sample"] for seat in "AB"]
        assert "reference" in seats and seats != ["reference", "reference"]


def as_samples(batch, task) -> StepSamples:
    rewards = task.reward(batch)
    return StepSamples(responses=batch, rewards=rewards, learned=np.arange(len(batch)), num_rounds=1)


def test_failed_calls_mask_and_the_step_goes_on_with_the_survivors(make_task, make_session):
    """A sample whose comparisons all failed has no advantage, and changes nobody else's."""
    run, examples, task = make_task(
        RuleJudge(_better, fails=lambda n: n == 1), "reference", max_failed_share=0.5
    )
    trainer = Trainer(make_session(), run, task)
    with task.judging():
        judged = task.judge(make_samples(examples), 0)
    rewards = task.reward(judged)
    assert (~rewards.valid).sum() == task.metrics(rewards)["judge/num_failed"] == 1
    lost = int(np.flatnonzero(~rewards.valid)[0])
    survivors = [sample for n, sample in enumerate(judged) if n != lost]

    def advantages(batch):
        found = {}
        for micro_batch in trainer.plan(as_samples(batch, task))[0]:
            for token in micro_batch.targets[micro_batch.targets >= 10].unique().tolist():
                rows = micro_batch.targets == token
                found[token] = tuple(
                    micro_batch.per_token[k][rows].sum().item() for k in ("advantages", "weights")
                )
        return found

    with_failure, without = advantages(judged), advantages(survivors)
    assert 10 + lost not in with_failure
    assert with_failure.keys() == without.keys()
    for token, sums in without.items():
        assert with_failure[token] == pytest.approx(sums)


def _better(pair):
    wrong = [text.count("nothing") + (text.count("The") < 3) for text in (pair.response_A, pair.response_B)]
    return r"\boxed{A}" if wrong[0] < wrong[1] else r"\boxed{B}"


def test_too_many_failures_end_the_run_and_a_stopped_judge_is_heard_of(make_task):
    judge = RuleJudge(oracle_judge, fails=lambda n: True)
    _, examples, task = make_task(judge, max_failed_share=0.2)
    with pytest.raises(UserError, match="12 of 12 calls"):
        rewards_of(task, make_samples(examples))
    before = task.state_dict()
    judge.reason = "the key is refused"
    with pytest.raises(JudgeStopped, match="key"):
        rewards_of(task, make_samples(examples))
    assert task.state_dict() == before


def test_each_step_draws_anew_and_a_repeated_one_draws_the_same(make_task):
    """After a checkpoint the same step has the same opponents and positions."""

    def drawn(step: int) -> list:
        _, examples, task = make_task(RuleJudge(_better), "circular")
        with task.judging():
            judged = task.judge(make_samples(examples), step)
        return [task.record(sample).get("comparisons") for sample in judged]

    assert drawn(3) == drawn(3) != drawn(4)
