"""Stand-ins for the parts of a job: steps on one rank without vLLM, and most of them without a model."""

from types import SimpleNamespace

import pytest


class OneRank:
    """The `Replicas` of a job of one rank."""

    index, count, place, tensor, makes_requests = 0, 1, 0, 1, True

    def share_of(self, num_items):
        return range(num_items)

    def all_gather_data(self, value):
        return [value]

    def ask_once(self, ask):
        return ask()


class NoPolicy:
    """What packing reads of a policy; `num_updates` is the length of its learning-rate schedule."""

    pad_multiple = 1
    hf_config = SimpleNamespace(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=32,
    )  # fmt: skip

    def start_training(self, optim, num_steps):
        self.num_updates = num_steps


class RecordedMemory:
    """A `Memory` that moves nothing; `is_home`: training state is on the device."""

    def __init__(self, events):
        self.events, self.is_home = events, True

    def offload(self):
        self.events.append("offload")
        self.is_home = False

    def onload(self):
        self.events.append("onload")

    def wait(self):
        self.events.append("wait")
        self.is_home = True

    def measure(self, stage):
        self.events.append(f"measure {stage}")

    def metrics(self):
        return {}


@pytest.fixture
def one_rank():
    return OneRank()


@pytest.fixture
def no_policy():
    return NoPolicy()


@pytest.fixture
def make_session():
    """Makes a `Session` of one rank of these parts; its `events` are the moves of memory and the phases, in order."""
    import torch
    from ralign.engine.report.progress import Progress
    from ralign.engine.training.session import Session

    class OneRankSession(Session):
        def __init__(self, policy, generator, tokenizer, critic):
            self.events: list[str] = []
            self.cluster = SimpleNamespace(
                rank=0, world_size=1, is_first_rank=True, device=torch.device("cpu"), all_true=lambda *flags: flags,
                dp_size=1, dp_rank=0, pp_size=1, tp_size=1, all_gather_data=lambda value: [value],
            )  # fmt: skip
            self.progress = Progress(enabled=False)
            self.watchdog = SimpleNamespace(phase=self.events.append)
            self.stop = SimpleNamespace(requested=False)
            self.policy, self.generator, self.tokenizer, self.critic = policy, generator, tokenizer, critic
            self.memory = RecordedMemory(self.events)

    def make(*, policy=None, generator=None, tokenizer=None, critic=None):
        return OneRankSession(policy or NoPolicy(), generator, tokenizer, critic)

    return make
