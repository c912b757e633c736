"""The trainer on FakeTensors of `cuda:0`, seen from one rank: forward, losses, backward, optimizer step, offload.

The real autograd engine and the real attention kernels' Python run; only values are missing. A tensor on another
device, an op that CUDA lacks and a number that is read where nothing should be raise.
"""

import numpy as np
import pytest
import torch
from fake_cuda import fake_cuda, fake_world
from ralign.engine.algorithms.losses import ReinforceLoss, supervised_loss
from ralign.engine.algorithms.ppo import add_advantages
from ralign.engine.config.algo import AlgoConfig, CriticConfig, OptimConfig
from ralign.engine.config.registry import FAMILIES
from ralign.engine.config.run import KernelsConfig
from ralign.engine.data.packing import Sample, materialise, plan
from ralign.engine.training.trainer import pack
from tiny import VOCAB, make_samples
from tiny import pack as tiny_pack

pytestmark = pytest.mark.usefixtures("h100")
DEVICE = torch.device("cuda", 0)
FORWARD = {"_forward_kernel", "_row_stats_kernel", "_merge_kernel"}  # RMSNorm's; the LM head's
BACKWARD = {"_backward_kernel", "_d_logits_kernel"}
LAYOUTS = {
    "one": {"size": 1},
    "tp2": {"size": 2, "rank": 1, "tensor": 2},
    "cp2": {"size": 2, "rank": 1, "context": 2},
    "dp2": {"size": 2, "rank": 1},
    "first stage": {"size": 2, "rank": 0, "pipeline": 2},
    "last stage": {"size": 2, "rank": 1, "pipeline": 2},
}
LOSSES = {
    "reinforce, folded": (ReinforceLoss(AlgoConfig()), True),
    "reinforce": (ReinforceLoss(AlgoConfig()), False),
    "reinforce by sequence": (ReinforceLoss(AlgoConfig(ratio="sequence")), True),
    "supervised, folded": (supervised_loss, True),
    "supervised": (supervised_loss, False),
}


@pytest.fixture(autouse=True)
def kernel_cache(pytestconfig, monkeypatch):
    """flash-attn 4 keeps what it compiles in the build folder, for the next run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.rootpath / "build" / "cache"))


def make_policy(folder, cluster, *, dtype="bf16", kernels=None, cls=None):
    from ralign.engine.policy.policy import Policy

    options = {"dtype": dtype, "kernels": kernels, "sequence_parallel": cluster.tp_size > 1}
    model = (cls or Policy)(folder, cluster, **options)
    model.start_training(OptimConfig(), num_steps=2)
    return model


def devices(tensors) -> set[torch.device]:
    return {x.device for x in tensors}


def optimizer_tensors(model) -> list[torch.Tensor]:
    """Master weights and moments; Adam's step stays in host memory."""
    inner = [distributed.optimizer for distributed in model.optimizer.chained_optimizers]
    masters = [x for optimizer in inner for group in optimizer.param_groups for x in group["params"]]
    states = [x for optimizer in inner for state in optimizer.state.values() for x in state.values()]
    return masters + [x for x in states if x.ndim]


def check_on_device(model, launches) -> None:
    parameters = list(model.gpt.parameters())
    assert devices(parameters) == devices(x.main_grad for x in parameters) == {DEVICE}
    assert devices(optimizer_tensors(model)) == {DEVICE}
    elsewhere = {name for name, tensors in launches if devices(tensors) != {DEVICE}}
    assert launches and not elsewhere, "kernels that got tensors of other devices"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES.names)
def test_forward_backward_and_optimizer_step(model_folder, launches, family, layout):
    folder = model_folder(family, tied=family != "llama")
    with fake_world(**LAYOUTS[layout]) as cluster, fake_cuda() as reads:
        policy = make_policy(folder, cluster)
        batches = pack(make_samples(12), cluster, policy, token_budget=128)
        assert len(batches) > 1
        outputs = policy.logprobs(batches)
        assert [(x.shape, x.dtype, x.device) for x in outputs] == [
            ((2, len(batch.targets)), torch.float32, DEVICE) for batch in batches
        ]
        policy.forward_backward(batches, ReinforceLoss(AlgoConfig()))
        assert not reads, "the host waits for the device between the start of an update and its end"
        policy.optimizer_step()
        assert len(reads) == 1
        check_on_device(policy, launches)
    kernels = {name for name, _ in launches}
    has_head = layout != "first stage"
    assert kernels >= ((FORWARD | BACKWARD) if has_head else {"_forward_kernel", "_backward_kernel"})


@pytest.mark.parametrize(
    "head_dim", [128, 16]
)  # flash-attn 4 where it is installed; torch's varlen attention
@pytest.mark.parametrize("name", LOSSES)
def test_losses(model_folder, launches, name, head_dim):
    loss, fold = LOSSES[name]
    folder = model_folder("qwen3", head_dim=head_dim)
    with fake_world(size=1) as cluster, fake_cuda():
        policy = make_policy(folder, cluster, kernels=KernelsConfig(fold_loss=fold))
        batches = pack(make_samples(6), cluster, policy, token_budget=128)
        policy.forward_backward(batches, loss)
        reports = [value for report in policy._reports for value in report.values()]
        assert devices(reports) == {DEVICE}
        policy.optimizer_step()
        check_on_device(policy, launches)
    assert {name for name, _ in launches} >= FORWARD | BACKWARD


def test_recomputation_and_a_frozen_reference(model_folder, launches):
    from ralign.engine.policy.policy import Policy

    with fake_world(size=1) as cluster, fake_cuda():
        policy = Policy(model_folder("qwen3"), cluster, dtype="bf16", recompute=True)
        policy.start_training(OptimConfig(), num_steps=1)
        policy.freeze_reference()
        batches = pack(make_samples(6), cluster, policy, token_budget=128)
        with policy.as_reference():
            for batch, output in zip(batches, policy.logprobs(batches), strict=True):
                batch.per_token["ref_logprobs"] = output[0]
        policy.update(batches, ReinforceLoss(AlgoConfig(kl_coef=0.1)))
        check_on_device(policy, launches)


def held_bytes(model) -> tuple[int, int]:
    """(optimizer state of its own memory, gradients) on the device; not by `.data`, which resizes a fake storage."""
    weights = {buffer.param_data.untyped_storage()._cdata for buffer in model.model.buffers}
    storages = {x.untyped_storage()._cdata: x.untyped_storage() for x in optimizer_tensors(model)}
    own = sum(storage.nbytes() for key, storage in storages.items() if key not in weights)
    return own, sum(buffer.grad_data.untyped_storage().nbytes() for buffer in model.model.buffers)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_training_state_leaves_and_comes_back(model_folder, launches, dtype, monkeypatch):
    from ralign.engine.policy import attention
    from ralign.engine.policy.offload import OffloadedState

    if dtype == "fp32":  # its attention needs the sequences' lengths on the host, and there are none here
        monkeypatch.setattr(attention, "packed_attention", lambda query, *_: query.clone())
    num_bytes = []
    with fake_world(size=1) as cluster, fake_cuda():
        policy = make_policy(model_folder("qwen3"), cluster, dtype=dtype)
        state = OffloadedState(policy)
        batches = pack(make_samples(6), cluster, policy, token_budget=128)
        for _ in range(2):
            policy.update(batches, ReinforceLoss(AlgoConfig()))
            num_bytes.append(held_bytes(policy))
            state.offload()
            assert held_bytes(policy) == (0, 0)
            assert devices(state._copies) == {torch.device("cpu")}
            state.onload()
            state.wait()
            assert held_bytes(policy) == num_bytes[-1]
        check_on_device(policy, launches)
    num_parameters = sum(x.numel() for x in policy.gpt.parameters())
    per_parameter = 12 if dtype == "bf16" else 8  # moments, and fp32 weights beside bf16 ones
    assert num_bytes[0] == num_bytes[1]
    assert num_bytes[0][0] >= per_parameter * num_parameters and num_bytes[0][1] >= 4 * num_parameters


@pytest.mark.parametrize("layout", ["one", "tp2", "first stage", "last stage"])
def test_critic(model_folder, launches, layout):
    """Values, advantages from them, and the critic's own update."""
    from ralign.engine.algorithms.losses import ValueLoss
    from ralign.engine.policy.critic import Critic

    rng = np.random.default_rng(0)
    samples = [
        Sample(
            prompt_ids=rng.integers(1, VOCAB, 9), response_ids=rng.integers(1, VOCAB, length),
            per_response_token={}, per_sample={"rewards": 1.0, "weights": 0.1},
        )
        for length in (7, 12, 20)
    ]  # fmt: skip
    with fake_world(**LAYOUTS[layout]) as cluster, fake_cuda():
        critic = make_policy(model_folder("qwen3"), cluster, cls=Critic)
        batches = tiny_pack(samples, cluster, token_budget=48, pad_multiple=critic.pad_multiple)
        for batch, values in zip(batches, critic.values(batches), strict=True):
            batch.per_token["values"] = values
        sums = add_advantages([batches], CriticConfig(), cluster.dp_group)
        assert sums.device == batches[0].per_token["advantages"].device == DEVICE
        critic.update(batches, ValueLoss(0.2))
        check_on_device(critic, launches)


def test_micro_batches_of_the_test_programs_are_on_the_models_device(model_folder, launches):
    """The programs under torchrun pack with `tiny.pack`; on the CPU their model could not read the batches."""
    samples = make_samples(6)
    on_cpu = materialise(
        samples, plan([len(sample) for sample in samples], token_budget=128, dp_size=1).of_rank(0)
    )
    with fake_world(size=1) as cluster, fake_cuda():
        policy = make_policy(model_folder("qwen3"), cluster)
        batches = tiny_pack(samples, cluster, token_budget=128, pad_multiple=policy.pad_multiple)
        assert devices(policy.logprobs(batches)) == {DEVICE}
        with pytest.raises(RuntimeError, match="cuda:0.*cpu"):
            policy.logprobs(on_cpu)
