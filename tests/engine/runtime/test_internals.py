"""Attributes of other packages: replaced for a while, and named in one sentence where they are missing."""

import json
from json import decoder
from types import SimpleNamespace

import pytest
import torch
from ralign.engine.runtime.internals import Internal, InternalPath, MissingInternal

READ = {"purpose": "how a file is read", "read_in": "0.1"}


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.nn", "NoSuchLayer"),
        ("torch.nn", "Linear.gone"),
        ("torch.gone", "anything"),
        ("torch.nn", "A.b"),
    ],
)
def test_a_missing_one_is_named_with_its_purpose_and_version(module, name):
    missing = Internal(module=module, name=name, **READ)
    with pytest.raises(MissingInternal) as error:
        with missing.replaced(None):
            raise AssertionError("never opened")
    said = (
        f"torch {torch.__version__} has no {module}.{name} (how a file is read); ralign read it in torch 0.1"
    )
    assert str(error.value) == said


@pytest.mark.parametrize("name", ["JSONDecoder.decode", "JSONDecoder", "py_scanstring"])
def test_a_replaced_one_is_put_back_also_after_an_error(name):
    internal = Internal(module="json.decoder", name=name, **READ)
    before = internal.get()
    with pytest.raises(ZeroDivisionError):
        with internal.replaced(len) as original:
            assert original is before and internal.get() is len
            raise ZeroDivisionError
    assert internal.get() is before


def test_a_static_method_stays_one(monkeypatch):
    class Owner:
        @staticmethod
        def name():
            return "theirs"

    monkeypatch.setattr(decoder, "Owner", Owner, raising=False)
    internal = Internal(module="json.decoder", name="Owner.name", **READ)
    with internal.replaced(staticmethod(lambda: "ours")):
        assert Owner().name() == "ours"
    assert Owner().name() == "theirs" and isinstance(internal.get(), staticmethod)


def test_a_path_is_followed_and_its_missing_link_named():
    steps = (("torch.nn", "A", "first"), ("torch.nn", "B", "second"))
    path = InternalPath(steps=steps, **READ)
    assert path.get(SimpleNamespace(first=SimpleNamespace(second=3))) == 3
    with pytest.raises(MissingInternal, match=r"^torch .* has no JSONEncoder\.second \(how a file is read\)"):
        path.get(SimpleNamespace(first=json.JSONEncoder()))
