"""Copies do not stop the host, and the device never holds two optimizers. Stand-ins replace CUDA."""

import weakref
from types import SimpleNamespace

import numpy as np
import torch
from ralign.engine.data.packing import to_device
from ralign.engine.policy import megatron_model
from ralign.engine.policy.policy import Policy


def make_policy(device: str) -> Policy:
    """One that has a buffer of weights and nothing else."""
    policy = object.__new__(Policy)
    policy.cluster = SimpleNamespace(device=torch.device(device))
    policy.model = SimpleNamespace(buffers=[SimpleNamespace(param_data=torch.arange(4.0))])
    policy._reference = None
    return policy


def test_arrays_go_to_a_gpu_through_pinned_memory(monkeypatch):
    calls: list = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: calls.append("pin") or x)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda x, device, **options: calls.append((device.type, options)) or x
    )
    to_device(np.arange(3), torch.device("cuda"))
    assert calls == ["pin", ("cuda", {"non_blocking": True})]
    calls.clear()
    assert to_device(np.arange(3), torch.device("cpu")).tolist() == [0, 1, 2]
    assert "pin" not in calls


def test_the_reference_is_pinned_and_comes_without_waiting(monkeypatch):
    options: list = []
    empty, copy = torch.empty, torch.Tensor.copy_

    def pinned(size, *, dtype, pin_memory):
        options.append(pin_memory)
        return empty(size, dtype=dtype)

    def copied(x, source, non_blocking=False):
        options.append(non_blocking)
        return copy(x, source)

    policy = make_policy("cuda")
    monkeypatch.setattr(torch, "empty", pinned)
    policy.freeze_reference()
    policy.freeze_reference()  # a later stage's, into the same memory
    assert options == [True]
    weights = policy.model.buffers[0].param_data
    weights += 1
    options.clear()
    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    with policy.as_reference():
        assert options == [True] and weights.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert weights.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_an_old_optimizer_is_gone_before_the_new_one_is_made(monkeypatch):
    class Optimizer:
        """Megatron's holds the moments of all parameters."""

    policy = make_policy("cpu")
    policy.optimizer, policy.schedule = Optimizer(), None
    old = weakref.ref(policy.optimizer)

    def make_optimizer(*_):
        assert old() is None
        return Optimizer(), None

    monkeypatch.setattr(megatron_model, "make_optimizer", make_optimizer)
    policy.start_training(None, 1)
    assert isinstance(policy.optimizer, Optimizer)
