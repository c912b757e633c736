"""Whole steps of an actor's training with a judge that loses a tenth of its calls. No model is needed."""

import random
import re
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
from ralign.engine.actors.task import ActorExample, ActorTask
from ralign.engine.config.actor import ActorRun
from ralign.engine.config.algo import AlgoConfig
from ralign.engine.config.judge import GenRMConfig
from ralign.engine.data.worlds.actorworld import build_notes
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig
from ralign.engine.generator.generator import Rollout
from ralign.engine.judging.comparisons import Schedule
from ralign.engine.judging.judge import Judge, Reply
from ralign.engine.judging.pairwise import PairwiseReward
from ralign.engine.policy.megatron_model import UpdateStats
from ralign.engine.training.trainer import Trainer

NOTES = build_notes(JudgeWorldConfig(num_train=8, num_dev=1, num_test=1))["train"]
_PROMPT = re.compile(r"Note:\n(.*)\nA:\n(.*)\nB:\n(.*)\nJudgment:\n", re.DOTALL)


class FakeActor:
    """Generator and policy of a whole step: answer k to prompt p is the token 10 + 8 p + k, whoever asks."""

    weight_version, pad_multiple = 0, 1

    def __init__(self, replicas, hf_config):
        self.replicas, self.hf_config, self.learned = replicas, hf_config, []

    def generate(self, prompts, *, num_samples, on_finished, **_):
        rollouts = [
            Rollout(
                prompt_index=n // num_samples, response_ids=np.full(1 + n % 3, 10 + n),
                logprobs=np.zeros(1 + n % 3, np.float32), finish_reason="stop", weight_version=0,
            )
            for n in range(len(prompts) * num_samples)
        ]  # fmt: skip
        for n, rollout in enumerate(rollouts):
            on_finished(n, rollout)
        return rollouts

    def start_training(self, optim, num_steps):
        pass

    def forward_backward(self, micro_batches, loss):
        self.learned.append(micro_batches)

    def optimizer_step(self, objection=None):
        return UpdateStats(loss=0.0, grad_norm=1.0, lr=1e-3, metrics={"num_tokens": 1.0})

    def weights_updated(self):
        pass

    def verify(self):
        pass

    def prove(self):
        pass

    def wake(self):
        pass

    def sleep(self):
        pass


class LosesATenth(Judge):
    """Prefers larger tokens, names the first position in a fifth of its calls, and loses a tenth; records all."""

    def __init__(self):
        self.rng, self.said = random.Random(4), []

    def submit(self, request):
        ((_, prompt),) = request.messages
        a, b = (int(text) for text in _PROMPT.fullmatch(prompt).groups()[1:])
        verdict = "A" if a > b or self.rng.random() < 0.2 else "B"
        failed = self.rng.random() < 0.1
        self.said.append((a, b, None if failed else verdict))
        future: Future = Future()
        future.set_result(Reply(failed=failed, text="" if failed else f"\\boxed{{{verdict}}}"))
        return future


def learned_by_token(micro_batches) -> dict[int, tuple[float, float]]:
    """Response token -> its advantage, and its weights' sum."""
    found = {}
    for batch in micro_batches:
        for token in batch.targets[batch.targets >= 10].unique().tolist():
            rows = batch.targets == token
            advantage = batch.per_token["advantages"][rows].unique().item()
            found[token] = (advantage, batch.per_token["weights"][rows].sum().item())
    return found


@pytest.mark.parametrize("order", ["random", "both"])
def test_with_a_tenth_of_calls_failing_steps_go_on_with_the_statistics_of_the_survivors(
    make_session, one_rank, no_policy, order
):
    """Rewards, masks, advantages and metrics of whole steps, against what the judge's own log says of each sample."""
    num_prompts, num_samples, num_lost = 6, 8, 0
    run = ActorRun(
        algo=AlgoConfig(num_prompts=num_prompts, num_samples=num_samples),
        genrm=GenRMConfig(max_failed_share=0.5),
    )
    examples = [ActorExample(question=note, prompt_ids=np.arange(5)) for note in NOTES]
    judge, actor = LosesATenth(), FakeActor(one_rank, no_policy.hf_config)
    reward_model = PairwiseReward(judge, Schedule(scheme="circular", num_samples=num_samples, order=order))
    tokenizer = SimpleNamespace(decode=lambda row, **_: str(row[0]))
    session = make_session(policy=actor, generator=actor, tokenizer=tokenizer)
    trainer = Trainer(session, run, ActorTask(run, examples, reward_model, one_rank))
    for step in range(1, 7):
        judge.said.clear()
        metrics, judged = trainer.step()
        assert metrics["step"] == step and len(actor.learned) == step
        tokens = range(10, 10 + num_prompts * num_samples)
        met = {token: {} for token in tokens}  # sample -> the other -> results of the calls that survived
        for a, b, verdict in judge.said:
            if verdict is not None:
                result = 1 if verdict == "A" else -1
                met[a].setdefault(b, []).append(result)
                met[b].setdefault(a, []).append(-result)
        rewards = {t: np.mean([np.mean(x) for x in of.values()]) for t, of in met.items() if of}
        assert {int(s.text): s.reward for s in judged if s.valid} == pytest.approx(rewards)
        num_lost += len(tokens) - len(rewards)
        learned = learned_by_token(actor.learned[-1])
        for start in range(10, 10 + num_prompts * num_samples, num_samples):
            group = [token for token in range(start, start + num_samples) if token in rewards]
            values = np.array([rewards[token] for token in group])
            advantages = (values - values.mean()) / (values.std(ddof=1) + 1e-6)
            for token, advantage in zip(group, advantages, strict=True):  # 0: nothing is computed
                assert learned.get(token, (0, 1))[0] == pytest.approx(advantage, abs=1e-5)
        assert learned.keys() <= rewards.keys()
        assert all(weight > 0 for _, weight in learned.values())
        assert sum(weight for _, weight in learned.values()) < 1 + 1e-6
        said = [verdict for *_, verdict in judge.said]
        num_pairs = len({frozenset(call[:2]) for call in judge.said})
        survived = len({frozenset(call[:2]) for call in judge.said if call[2] is not None})
        assert metrics["reward/mean"] == pytest.approx(np.mean(list(rewards.values())), abs=1e-6)
        assert metrics["judge/num_comparisons"] == num_pairs == num_prompts * num_samples
        assert metrics["judge/num_calls"] == len(said) and metrics["judge/num_failed"] == said.count(None)
        assert metrics["judge/num_masked"] == num_pairs - survived
        assert metrics["judge/first_position_share"] == said.count("A") / (len(said) - said.count(None))
    assert num_lost > 0 or order == "both"  # somebody lost both comparisons
