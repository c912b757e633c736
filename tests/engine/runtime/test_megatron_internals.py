"""Megatron-core's internals as the installed version has them."""

import importlib
import inspect
import re

import pytest
from ralign.engine.checkpoint.writer import ThreadedSave
from ralign.engine.policy.model import PackedGPT
from ralign.engine.policy.pipeline import StageLinks
from ralign.engine.runtime import megatron_internals as internals
from ralign.engine.runtime.internals import Internal, InternalPath

ATTRIBUTES = {name: value for name, value in vars(internals).items() if isinstance(value, Internal)}
PATHS = {name: value for name, value in vars(internals).items() if isinstance(value, InternalPath)}
OVERRIDDEN = {
    "PREPROCESS": PackedGPT._preprocess,
    "POSTPROCESS": PackedGPT._postprocess,
    "STAGE_SHAPES": StageLinks._communicate_shapes,
    "SAVE_CALLBACKS": ThreadedSave._get_save_and_finalize_callbacks,
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_the_installed_megatron_has_it(name):
    ATTRIBUTES[name].get()


@pytest.mark.parametrize("name", PATHS)
def test_the_installed_megatrons_objects_have_it(name):
    for module, owner, attribute in PATHS[name].steps:
        source = inspect.getsource(getattr(importlib.import_module(module), owner))
        assert re.search(rf"self\.{attribute}\b[^=\n]*=|def {attribute}\b", source), (
            f"the installed Megatron's {module}.{owner} has no {attribute}; ralign read it in {internals.READ_IN}"
        )


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_an_override_takes_what_megatron_gives(name):
    theirs = inspect.signature(ATTRIBUTES[name].get()).parameters
    ours = inspect.signature(OVERRIDDEN[name]).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in ours.values())
    named = [n for n, parameter in ours.items() if parameter.kind is not parameter.VAR_KEYWORD]
    assert set(named) <= set(theirs), f"Megatron does not give {set(named) - set(theirs)}"
    assert takes_all or named == list(theirs)
