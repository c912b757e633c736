"""Accesses to vLLM's internals: there in the installed version, and named in one sentence where they are not."""

import inspect

import pytest
from ralign.engine.generator import vllm_internals
from ralign.engine.generator.vllm_internals import MissingInternal, replaced, require

ACCESSES = [
    value for name, value in vars(vllm_internals).items() if name.isupper() and isinstance(value, tuple)
]


@pytest.mark.parametrize("access", ACCESSES, ids=lambda access: access[1])
def test_the_installed_vllm_has_it(access):
    assert callable(require(access)) or isinstance(require(access), staticmethod)


def test_every_access_is_listed():
    assert len(ACCESSES) == 2


@pytest.mark.parametrize(
    "access",
    [
        ("vllm.model_executor.layers.utils", "dispatch_gone", "how a layer reads its weight"),
        ("vllm.no_such_module", "anything", "a name"),
        ("vllm.distributed.device_communicators.cpu_communicator", "_CPUSHMDistributed.gone", "a name"),
    ],
)
def test_a_missing_one_is_named_with_its_purpose_and_version(access):
    with pytest.raises(MissingInternal) as error:
        with replaced(access, None):
            raise AssertionError("never opened")
    assert f"{access[0]}.{access[1]}" in str(error.value) and access[2] in str(error.value)
    assert vllm_internals.READ_IN in str(error.value)


@pytest.mark.parametrize("access", ACCESSES, ids=lambda access: access[1])
def test_what_was_replaced_is_put_back_also_after_an_error(access):
    before = require(access)
    with pytest.raises(ZeroDivisionError):
        with replaced(access, staticmethod(len)) as original:
            assert original is before and require(access) is not before
            raise ZeroDivisionError
    assert require(access) is before


def test_the_stand_in_takes_what_vllm_gives():
    theirs = inspect.signature(require(vllm_internals.CPU_GEMM))
    assert list(theirs.parameters) == list(
        inspect.signature(vllm_internals.linear_reads_its_weight).parameters
    )
