"""vLLM's own loader builds the engine's model as on an H100, and takes the trainer's tensors for its parameters."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from fake_cuda import fake_cuda, fake_world
from ralign.engine.config.registry import FAMILIES
from ralign.engine.config.run import GeneratorConfig
from ralign.engine.generator.engine_args import engine_args, prepare_environment
from torch import Tensor

pytestmark = pytest.mark.usefixtures("h100")
DEVICE = torch.device("cuda", 0)
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


@contextmanager
def _engine_groups(tensor: int) -> Iterator[None]:
    """vLLM's process groups over the fake ones; what moves bytes between GPUs is not made."""
    from vllm.distributed import parallel_state
    from vllm.distributed.device_communicators.base_device_communicator import DeviceCommunicatorBase
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
    from vllm.platforms import current_platform

    communicator = f"{DeviceCommunicatorBase.__module__}.{DeviceCommunicatorBase.__qualname__}"
    with ExitStack() as stack:
        replaced = {"get_device_communicator_cls": lambda *_: communicator}
        stack.enter_context(mock.patch.multiple(type(current_platform), **replaced))
        stack.enter_context(
            mock.patch.object(MessageQueue, "create_from_process_group", lambda *_, **__: None)
        )
        stack.callback(parallel_state.destroy_distributed_environment)
        stack.callback(parallel_state.destroy_model_parallel)
        parallel_state.init_distributed_environment(
            tensor, dist.get_rank(), "env://", dist.get_rank(), "fake"
        )
        parallel_state.ensure_model_parallel_initialized(tensor, 1)
        yield


def _keeps_its_device(make_view):
    """A FakeTensor's device is among its attributes, which the view gets from the parameter that it replaces."""

    def make(name, old, tensor):
        view = make_view(name, old, tensor)
        view.fake_device = tensor.fake_device
        return view

    return make


@contextmanager
def engine_model(folder, *, dtype: str = "bf16", tensor: int = 1, rank: int = 0) -> Iterator[tuple]:
    """(trainer's tensors by vLLM's names, vLLM's model that has adopted them, vLLM's configuration)."""
    from ralign.engine.generator import shared
    from ralign.engine.policy.policy import Policy
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.usage.usage_lib import UsageContext

    config = GeneratorConfig()
    with (
        mock.patch.dict(os.environ),
        mock.patch.object(shared, "_view", _keeps_its_device(shared._view)),
        fake_world(size=tensor, rank=rank, tensor=tensor) as cluster,
    ):
        prepare_environment(config)
        ours: dict[str, Tensor] = {}  # the loader's, filled below
        args = engine_args(
            config, folder=str(folder), load_format=shared.register_shared_loader(ours), tensor=tensor,
            dtype=DTYPES[dtype], max_model_len=256, kv_bytes=1 << 30, on_cpu=False,
        )  # fmt: skip
        engine_config = EngineArgs(**args).create_engine_config(UsageContext.LLM_CLASS)
        with set_current_vllm_config(engine_config), _engine_groups(tensor), fake_cuda():
            ours |= Policy(folder, cluster, dtype=dtype).vllm_parameters()
            model = get_model_loader(engine_config.load_config).load_model(
                vllm_config=engine_config, model_config=engine_config.model_config
            )
            yield ours, model, engine_config


def check_shared(ours, model) -> None:
    theirs = dict(model.named_parameters())
    assert set(theirs) == set(ours)
    for name, parameter in theirs.items():
        own = ours[name]
        assert (parameter.shape, parameter.dtype, parameter.device) == (own.shape, own.dtype, DEVICE), name
        assert parameter.untyped_storage()._cdata == own.untyped_storage()._cdata, f"{name}: another storage"
        assert parameter.stride() == own.stride(), name
    wrong = {name: x.device for name, x in model.named_buffers() if x.device != DEVICE}
    assert not wrong, "buffers of the engine's model elsewhere"
    loose = {
        f"{name}.{leaf}"
        for name, module in model.named_modules()
        for leaf, x in vars(module).items()
        if isinstance(x, Tensor) and x.device.type == "meta"
    }
    assert not loose, "plain tensors of the engine's model that were never given memory"


@pytest.mark.parametrize(("tensor", "rank"), [(1, 0), (2, 0), (2, 1)])
@pytest.mark.parametrize("tied", ["untied", "tied", "tied, head in files"])
@pytest.mark.parametrize("family", FAMILIES.names)
def test_engine_adopts_the_trainers_tensors(model_folder, family, tied, tensor, rank):
    folder = model_folder(family, tied=tied != "untied", head_in_files=tied == "tied, head in files")
    with engine_model(folder, tensor=tensor, rank=rank) as (ours, model, engine_config):
        check_shared(ours, model)
        assert ("lm_head.weight" in ours) == (tied == "untied")
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        assert (head is embedding) == (tied != "untied")
        assert head.dtype == torch.bfloat16
        assert engine_config.model_config.head_dtype == model.logits_processor.head_dtype == torch.float32


def test_loading_repacks_no_weight(model_folder):
    """After the weights are there, vLLM lets each layer repack them for its kernels: on CUDA, in bf16, none does."""
    from ralign.engine.generator import shared

    seen = []

    def remember(model, parameters):
        adopt(model, parameters)
        seen.append({name: (id(x), x._version) for name, x in model.named_parameters()})

    adopt = shared.adopt
    with mock.patch.object(shared, "adopt", remember), engine_model(model_folder("qwen3")) as (_, model, _):
        assert {name: (id(x), x._version) for name, x in model.named_parameters()} == seen[0]


@pytest.mark.parametrize(("dtype", "backend"), [("bf16", "FLASH_ATTN"), ("fp32", "TRITON_ATTN")])
def test_attention_backend(model_folder, dtype, backend):
    with engine_model(model_folder("qwen3"), dtype=dtype) as (_, _, engine_config):
        layers = engine_config.compilation_config.static_forward_context.values()
        assert {layer.attn_backend.get_name() for layer in layers} == {backend}
