"""What every trained model does around Megatron's passes."""

from types import SimpleNamespace

import pytest
import torch
from ralign.engine.policy import megatron_model
from ralign.engine.policy.policy import Policy


@pytest.mark.parametrize("deterministic", [True, False])
def test_training_uses_deterministic_kernels_where_the_settings_ask_for_them(monkeypatch, deterministic):
    seen: list[bool] = []

    def schedule(**_):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return []

    monkeypatch.setattr(megatron_model, "get_forward_backward_func", lambda: schedule)
    monkeypatch.setattr(megatron_model, "stage_links", lambda *_: {})
    policy = object.__new__(Policy)
    policy.cluster = SimpleNamespace(deterministic=deterministic)
    policy.model = SimpleNamespace(config=None)
    policy._run([SimpleNamespace(input_ids=torch.zeros(3))], None, forward_only=True)
    assert seen == [deterministic] and not torch.are_deterministic_algorithms_enabled()


def test_weights_are_those_of_a_folder_until_they_change(tmp_path, monkeypatch):
    monkeypatch.setattr(megatron_model.hf, "load", lambda *_: None)
    policy = object.__new__(Policy)
    policy.model, policy.cluster = SimpleNamespace(module=None), None
    policy.load(tmp_path)
    assert policy.has_weights_of(tmp_path) and policy.has_weights_of(str(tmp_path / "."))
    assert not policy.has_weights_of(tmp_path / "other")
