"""The competence of a judge during its warm start: how probable it finds the decisive token of golden judgments.

Each golden judgment has one token that tells the better response for the first time, such as the mark of the faulty
fact. Its probability, given the golden text before it, takes one forward pass and no generation. A warm start of a
fixed number of steps ends at different levels on different machines and seeds; one that ends at a level does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ralign.engine.data.examples import encode_answer
from ralign.engine.data.packing import Sample
from ralign.engine.training.session import Session
from ralign.engine.training.tasks import Prompt
from ralign.engine.training.trainer import pack


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Golden judgments with their decisive places.

    Attributes:
        examples: [N] the prompts.
        texts: [N] their golden judgments.
        starts: [N] the character of each text at which the decisive token starts.
    """

    examples: Sequence[Prompt]
    texts: Sequence[str]
    starts: Sequence[int]


class Competence:
    """The mean probability of the decisive tokens under the policy of a session."""

    def __init__(self, session: Session, probe: Probe, token_budget: int):
        self.session, self.token_budget = session, token_budget
        self.samples = [
            _sample(example, text, start, session.tokenizer)
            for example, text, start in zip(probe.examples, probe.texts, probe.starts, strict=True)
        ]

    def measure(self) -> float:
        """Collective: the same value on all ranks. Probabilities are at `generator.temperature`, as in RL."""
        cluster, policy = self.session.cluster, self.session.policy
        batches = pack(self.samples, cluster, policy, self.token_budget)
        total = torch.zeros((), dtype=torch.float64, device=cluster.device)
        for batch, output in zip(batches, policy.logprobs(batches), strict=True):
            total += (output[0].double().exp() * batch.per_token["is_decisive"]).sum()
        return sum(cluster.all_gather_data(float(total))) / len(self.samples)


def _sample(example: Prompt, text: str, start: int, tokenizer) -> Sample:
    ids = encode_answer(text, tokenizer)
    before = encode_answer(text[:start], tokenizer)[:-1]
    # A tokenizer may join what is on both sides of `start`: the decisive token is the first that differs.
    common = np.flatnonzero(ids[: len(before)] != before)
    position = int(common[0]) if len(common) else len(before)
    is_decisive = np.zeros(len(ids), dtype=np.float32)
    is_decisive[position] = 1
    return Sample(
        prompt_ids=example.prompt_ids,
        response_ids=ids,
        per_response_token={"is_decisive": is_decisive},
        per_sample={"weights": 0.0},  # it teaches nothing
    )
