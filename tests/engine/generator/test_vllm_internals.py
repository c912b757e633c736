"""vLLM's internals as the installed version has them."""

import ast
import importlib
import inspect
import textwrap
from types import SimpleNamespace

import pytest
import torch
from ralign.engine.generator import vllm_internals
from ralign.engine.runtime.internals import Internal, InternalPath

ATTRIBUTES = {name: value for name, value in vars(vllm_internals).items() if isinstance(value, Internal)}
PATHS = {name: value for name, value in vars(vllm_internals).items() if isinstance(value, InternalPath)}
BOTH_RUNNERS = [
    *{step for path in PATHS.values() for step in path.steps},
    (
        "vllm.v1.worker.gpu.model_runner",
        "GPUModelRunner",
        "kv_caches",
    ),  # the second one, by VLLM_USE_V2_MODEL_RUNNER
]


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_the_installed_vllm_has_it(name):
    found = ATTRIBUTES[name].get()
    assert callable(found) or isinstance(found, staticmethod)


@pytest.mark.parametrize(("module", "name", "attribute"), sorted(BOTH_RUNNERS))
def test_the_installed_vllms_objects_have_it(module, name, attribute):
    assert attribute in assigned(getattr(importlib.import_module(module), name)), (
        f"the installed vLLM's {module}.{name} never sets {attribute}; ralign read it in {vllm_internals.READ_IN}"
    )


def assigned(owner: type) -> set[str]:
    """Attributes that a class's code sets on its objects, or declares."""
    names = set(owner.__annotations__)
    for base in owner.__mro__[:-1]:
        if base.__module__.partition(".")[0] != "vllm":
            continue
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(base)))):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names |= {target.attr for target in targets if isinstance(target, ast.Attribute)}
    return names


def test_the_replacement_takes_what_vllm_gives():
    theirs = inspect.signature(vllm_internals.CPU_GEMM.get())
    ours = inspect.signature(vllm_internals.linear_reads_its_weight)
    assert list(theirs.parameters) == list(ours.parameters)


def test_a_request_keeps_its_name_before_the_engines_random_part():
    from vllm.v1.engine.input_processor import InputProcessor

    request = SimpleNamespace(request_id="17", external_req_id=None)
    InputProcessor.assign_request_id(request)
    assert request.request_id != "17" and vllm_internals.named_request(request.request_id) == "17"


def test_a_storage_that_layers_share_is_listed_once():
    shared, own = torch.zeros(4, 2), torch.zeros(3)
    runner = SimpleNamespace(kv_caches=[shared[:2], [shared[2:], own], shared])
    worker = SimpleNamespace(worker=SimpleNamespace(model_runner=runner))
    executor = SimpleNamespace(driver_worker=worker)
    llm = SimpleNamespace(llm_engine=SimpleNamespace(model_executor=executor))
    sizes = [storage.nbytes() for storage in vllm_internals.kv_cache_storages(llm)]
    assert sizes == [32, 12]
