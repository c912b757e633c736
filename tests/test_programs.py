"""The programs under tests/programs keep to the cluster's device, which is a GPU wherever there is one.

A tensor subclass stands for a GPU's tensors: like those it refuses operands in host memory, and numpy.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ralign.engine.data.packing import PackedBatch
from transformers import AutoModelForCausalLM

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(autouse=True)
def programs_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(PROGRAMS))
    yield
    for name in [name for name, module in sys.modules.items() if _file_of(module).parent == PROGRAMS]:
        del sys.modules[name]


def _file_of(module) -> Path:
    return Path(module.__dict__.get("__file__") or "")


class OnDevice(torch.Tensor):
    """A tensor that says of itself that it is not in host memory."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.Tensor.cpu:
                return args[0].as_subclass(torch.Tensor)
            if func is torch.Tensor.numpy:
                raise TypeError("can't convert a device's tensor to numpy: copy it to host memory first")
            if any(type(x) is torch.Tensor and x.ndim for x in (*args, *kwargs.values())):
                raise RuntimeError(f"{func}: expected all tensors to be on the same device")
        return super().__torch_function__(func, types, args, kwargs)


def test_the_stand_in_refuses_what_a_gpu_refuses():
    host, there = torch.ones(3), torch.ones(3).as_subclass(OnDevice)
    for mixed in (lambda: host - there, lambda: there - host, lambda: torch.equal(there, host)):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(TypeError, match="host memory first"):
        there.numpy()
    assert (host - there.cpu()).sum() == 0 and (there[:2] + there[:2]).tolist() == [2, 2]


def cluster_on(device: str) -> SimpleNamespace:
    return SimpleNamespace(device=torch.device(device), dp_rank=0, dp_size=1, tp_size=1)


def test_micro_batches_lie_on_the_clusters_device():
    from tiny import make_samples, pack

    samples = make_samples(6)
    for device in ("cpu", "meta"):
        batches = pack(samples, cluster_on(device), token_budget=64, pad_multiple=2)
        assert len(batches) > 1
        for batch in batches:
            tensors = [
                x for name in PackedBatch.__slots__ if isinstance(x := getattr(batch, name), torch.Tensor)
            ]
            assert len(tensors) == 6
            assert {x.device.type for x in (*tensors, *batch.per_token.values())} == {device}


@pytest.fixture
def samples_and_batch():
    from tiny import make_samples, pack

    samples = make_samples(3)
    return samples, pack(samples, cluster_on("cpu"), token_budget=4096, pad_multiple=2)[0]


def test_logprobs_of_a_device_are_compared_with_transformers_in_host_memory(tmp_path, samples_and_batch):
    from parity import hf_logits_diff
    from tiny import make_model

    samples, batch = samples_and_batch
    make_model(tmp_path, "qwen3", tied=True)
    expected = torch.zeros(2, len(batch.targets))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for sample, logprobs, entropy in zip(
        samples, batch.unpack(expected[0]), batch.unpack(expected[1]), strict=True
    ):
        ids = torch.tensor([*sample.prompt_ids, *sample.response_ids])
        with torch.no_grad():
            found = model(ids[None]).logits[0].log_softmax(-1)[len(sample.prompt_ids) - 1 : -1]
        logprobs.copy_(found.gather(1, torch.from_numpy(sample.response_ids)[:, None])[:, 0])
        entropy.copy_(-(found.exp() * found).sum(-1))
    policy = SimpleNamespace(logprobs=lambda batches: [expected.as_subclass(OnDevice)])
    assert hf_logits_diff(tmp_path, policy, samples, batch) < 1e-6
    expected += 1
    assert hf_logits_diff(tmp_path, policy, samples, batch) == pytest.approx(1)


def test_values_of_a_device_are_compared_in_host_memory(samples_and_batch):
    from values import difference

    samples, batch = samples_and_batch
    values = torch.arange(float(len(batch.targets)))
    expected = [torch.zeros(len(sample)) for sample in samples]
    for start, index in zip(batch.cu_seqlens.tolist(), batch.indices, strict=False):
        expected[index] += torch.arange(start, start + len(samples[index]))
    critic = SimpleNamespace(values=lambda batches: [values.as_subclass(OnDevice)])
    assert difference(critic, expected, batch) == 0
    expected[1][2] += 3
    assert difference(critic, expected, batch) == 3


def test_pieces_of_an_optimizer_on_a_device_are_gathered_through_host_memory(monkeypatch):
    import resume

    def gather(out, mine):
        out[:] = [mine]

    monkeypatch.setattr(resume.dist, "all_gather_object", gather)
    cluster = SimpleNamespace(world_size=1)
    data = torch.arange(6.0).view(2, 3)
    piece = SimpleNamespace(key="w", global_shape=(2, 3), global_offset=(0, 0), replica_id=0, data=data)

    def stage_with(tensor):
        piece.data = tensor
        model = SimpleNamespace(sharded_state=lambda prefix: {"w": [piece]}, weights_identity=lambda: "1")
        return SimpleNamespace(models={"policy": model})

    there, host = data.as_subclass(OnDevice), data
    assert resume.bits(cluster, stage_with(there)) == resume.bits(cluster, stage_with(host))
    whole = resume.assembled(cluster, stage_with(there))["w"]
    assert type(whole) is torch.Tensor and torch.equal(whole, data)


def test_memory_is_measured_where_the_tensors_are(monkeypatch):
    """On CUDA the most that its allocator gave out; the CPU's allocator would have given nothing."""
    from measure import peak_bytes

    held, events = {"now": 1000, "most": 5000}, []

    def reset():
        held["most"] = held["now"]

    def use():
        events.append("called")
        held["most"] = held["now"] + 700

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: held["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: held["most"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    assert peak_bytes(use) == 700 and events == ["called"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert 4000 <= peak_bytes(lambda: torch.ones(1000)) < 8000
