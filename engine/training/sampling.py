"""The samples of a step: prompts are drawn, answered and judged.

With algo.dynamic_sampling a step may have several rounds. While fewer than `num_prompts` groups have a spread of
rewards, further prompts are drawn, and the update learns from the first groups with a spread (DAPO, arXiv:2503.14476).
Groups without one fill up the batch where the last round leaves too few, so that its size is always the same. Metrics
of rewards are over all rounds: the groups that were kept say nothing about the policy as it is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
from ralign.engine.config.registry import ADVANTAGES
from ralign.engine.config.run import Run
from ralign.engine.data.examples import decode_answer
from ralign.engine.data.sampler import PromptSampler
from ralign.engine.generator.generator import Rollout
from ralign.engine.judging.judge import JudgeStopped
from ralign.engine.training.session import Session
from ralign.engine.training.tasks import Response, RewardBatch, Task

Phase = Callable[[str], AbstractContextManager[None]]


@dataclass(kw_only=True, slots=True)
class StepSamples:
    """All judged responses of a step; equal on all ranks.

    Attributes:
        rewards: of all responses.
        learned: [num_prompts * num_samples] int64, the responses to learn from, in the order of their groups.
    """

    responses: list[Response]
    rewards: RewardBatch
    learned: np.ndarray
    num_rounds: int


class Sampling:
    """Draws prompts, and has them answered by the engine and judged by the task."""

    def __init__(self, session: Session, run: Run, task: Task):
        """With `algo.partner`, examples 2i and 2i + 1 of the task are a pair and its twin."""
        self.session, self.run, self.task = session, run, task
        self.generator = session.generator
        size = run.algo.groups_per_unit
        self.sampler = PromptSampler(len(task.examples) // size, run.algo.num_prompts // size, run.seed)

    @contextmanager
    def judging(self) -> Iterator[None]:
        """The task's judges are awake. If one stops for good, the sampler goes back to the step's prompts."""
        before = self.sampler.state_dict()
        try:
            with self.task.judging():
                yield
        except JudgeStopped:
            self.sampler.load_state_dict(before)
            raise

    def collect(self, step: int, phase: Phase) -> StepSamples:
        """The samples of step number `step`, within `judging`, while the engine is awake."""
        algo, responses = self.run.algo, []
        for number in range(1 + algo.dynamic_sampling):
            with phase("generate"):
                rollouts = self.generate(step, number)
            with phase("judge"):
                responses += self.judge(rollouts, step)
                rewards = self.task.reward(responses)
            flat = flat_units(
                [r.group for r in responses],
                rewards,
                algo.groups_per_unit,
                by_pair=algo.group == "pair",
                by_part=getattr(ADVANTAGES.load(algo.advantages), "takes_parts", False),
            )
            if np.sum(~flat) * algo.groups_per_unit >= algo.num_prompts:
                break
        units = first_with_spread(flat, algo.num_prompts // algo.groups_per_unit)
        learned = np.flatnonzero(np.isin([r.group // algo.groups_per_unit for r in responses], units))
        return StepSamples(responses=responses, rewards=rewards, learned=learned, num_rounds=number + 1)

    def generate(self, step: int, number: int = 0) -> list[tuple[int, int, Rollout]]:
        """(example, group, rollout) of this engine's share of round `number`; groups count on over the rounds."""
        algo, replicas, examples = self.run.algo, self.generator.replicas, self.task.examples
        size = algo.groups_per_unit
        batch = [size * unit + place for unit in self.sampler.next_batch() for place in range(size)]
        mine, before = replicas.share_of(algo.num_prompts), number * algo.num_prompts

        def on_finished(index: int, rollout: Rollout) -> None:
            example = batch[mine[rollout.prompt_index]]
            is_cut = rollout.finish_reason == "length"
            self.task.on_response(index, example, self.text_of(example, rollout), is_cut=is_cut)

        rollouts = self.generator.generate(
            [examples[batch[group]].prompt_ids.tolist() for group in mine],
            num_samples=algo.num_samples,
            max_new_tokens=self.run.generator.max_new_tokens,
            temperature=self.run.generator.temperature,
            seed=hash((self.run.seed, step, replicas.index, *([number] if number else []))) % 2**31,
            on_finished=on_finished,
        )
        return [(batch[mine[r.prompt_index]], before + mine[r.prompt_index], r) for r in rollouts]

    def text_of(self, example: int, rollout: Rollout) -> str:
        opens_thinking = self.task.examples[example].opens_thinking
        return decode_answer(rollout.response_ids, self.session.tokenizer, opens_thinking=opens_thinking)

    def judge(self, rollouts: list[tuple[int, int, Rollout]], step: int) -> list[Response]:
        """This engine's rollouts of a round, judged, then gathered with those of all engines."""
        responses = [
            Response(example=example, group=group, rollout=rollout, text=self.text_of(example, rollout))
            for example, group, rollout in rollouts
        ]
        judged = self.task.judge(responses, step)
        return [response for part in self.generator.replicas.all_gather_data(judged) for response in part]


def flat_units(
    groups: Sequence[int],
    rewards: RewardBatch,
    groups_per_unit: int,
    *,
    by_pair: bool = False,
    by_part: bool = False,
) -> np.ndarray:
    """[num_units] bool: units whose groups have no spread of rewards.

    A unit is a group, or the two groups of a pair and its twin.

    groups: of each sample, from 0 on; group g belongs to unit g // groups_per_unit. by_pair: the two groups of a unit
    are compared with each other, too. by_part: each part of the rewards is compared by itself.
    """
    ids = np.asarray(groups)
    columns = rewards.parts.T if by_part else rewards.values[None]
    compared = ids // groups_per_unit if by_pair else ids
    flat = np.ones(ids.max() // groups_per_unit + 1, dtype=bool)
    for group in np.unique(compared):
        members = compared == group
        if any(len(np.unique(column[members & rewards.valid])) > 1 for column in columns):
            flat[ids[members] // groups_per_unit] = False
    return flat


def first_with_spread(flat: np.ndarray, num_units: int) -> np.ndarray:
    """The units of a batch, in the order in which they were drawn: those with a spread first, then others.

    flat: [num_drawn] bool, no spread. Returns [num_units] int64, ascending.
    """
    order = np.concatenate([np.flatnonzero(~flat), np.flatnonzero(flat)])
    return np.sort(order[:num_units])
