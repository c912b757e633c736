"""In the stand-in CUDA's names mean the CPU; outside nothing has changed, also after an error."""

import pytest
import torch
from ralign.engine.runtime import cuda_stand_in as module
from ralign.engine.runtime.cuda_stand_in import cuda_stand_in, on_megatron, patched
from ralign.engine.runtime.internals import MissingInternal

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-in does nothing with CUDA")


@pytest.mark.parametrize("name", module._PATCHES)
def test_the_installed_packages_have_what_is_patched(name):
    assert callable(patched(name).get())


def test_inside_cuda_means_the_cpu():
    with cuda_stand_in():
        assert torch.zeros(2, device="cuda").device.type == "cpu"
        assert torch.zeros(2, device=torch.cuda.current_device()).device.type == "cpu"
        assert torch.zeros(2, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
        assert torch.zeros(2).cuda().device.type == "cpu"
        torch.cuda.manual_seed(1)
        state, drawn = torch.cuda.get_rng_state(), torch.rand(3)
        torch.cuda.set_rng_state(state)
        assert torch.equal(torch.rand(3), drawn)


def test_everything_is_undone_after_an_error_and_after_nested_use():
    before = {name: patched(name).get() for name in module._PATCHES}
    with pytest.raises(ZeroDivisionError):
        with cuda_stand_in():
            with cuda_stand_in():
                pass
            assert all(patched(name).get() is not before[name] for name in before), "the inner one undid it"
            raise ZeroDivisionError
    assert {name: patched(name).get() for name in module._PATCHES} == before
    assert torch.zeros(2).type() == "torch.FloatTensor"
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(2, device="cuda")


def test_a_missing_function_is_named_and_the_others_are_put_back(monkeypatch):
    before = {name: patched(name).get() for name in module._PATCHES}
    monkeypatch.setitem(module._PATCHES, "torch.cuda.gone", len)
    with pytest.raises(MissingInternal, match=r"torch .* has no torch\.cuda\.gone \(training without CUDA\)"):
        with cuda_stand_in():
            raise AssertionError("never opened")
    assert {name: patched(name).get() for name in before} == before


def test_a_method_on_megatron_runs_inside():
    @on_megatron
    def device_of(value: float) -> str:
        """Says where it is."""
        return torch.full((2,), value, device="cuda").device.type

    assert device_of(1.0) == "cpu" and device_of.__doc__ == "Says where it is."
