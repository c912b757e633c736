"""Named implementations: all names lead somewhere, a user's own comes by import path, and mistakes are one line."""

import re
import sys

import pytest
from ralign.engine.algorithms.rewards import Reward
from ralign.engine.config.command_line import parse
from ralign.engine.config.registry import ADVANTAGES, FAMILIES, METARMS, OBJECTIVES, REWARDS, Registry
from ralign.engine.config.run import GenRMRun
from ralign.engine.config.validation import validate
from ralign.engine.judging.metarms import MetaRMKind
from ralign.engine.runtime.errors import UserError

REGISTRIES = [ADVANTAGES, OBJECTIVES, REWARDS, METARMS, FAMILIES]
every_registry = pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.setting)


def refusal(action) -> str:
    """The message of a UserError, which is one line."""
    with pytest.raises(UserError) as refused:
        action()
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.fixture
def own_file(tmp_path):
    def write(text: str, name: str = "own.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


@every_registry
def test_every_name_loads_one_object(registry):
    objects = [registry.load(name) for name in registry.names]
    assert len({id(found) for found in objects}) == len(objects) > 1
    assert [registry.load(name) for name in registry.names] == objects


@every_registry
def test_an_unknown_name_is_refused_with_the_known_ones(registry):
    for action in (registry.load, registry.check):
        message = refusal(lambda action=action: action("nope"))
        assert message.startswith(f"{registry.setting}=nope: expected one of ") and message.endswith(
            "or FILE.py:NAME"
        )
        assert all(name in message for name in registry.names)


@every_registry
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/nowhere/own.py:NAME", "no module /nowhere/own.py"),
        ("nowhere:NAME", "no module nowhere"),
        ("ralign.nowhere.more:NAME", "no module ralign.nowhere.more"),
        ("json.decoder.more:NAME", "no module json.decoder.more"),
        ("json:NAME", "json has no NAME"),
        ("json:", "json has no "),
        (":NAME", "no module "),
        ("..json:NAME", "no module ..json"),
    ],
)
def test_an_import_path_that_leads_nowhere_is_refused(registry, path, said):
    for action in (registry.load, registry.check):
        assert refusal(lambda action=action: action(path)) == f"{registry.setting}={path}: {said}"


@every_registry
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("NAME = (\n", "1: '(' was never closed"),
        ("\n1 / 0\n", "2: ZeroDivisionError: division by zero"),
        ("def f():\n    raise OSError('a\\nb')\n\nf()\n", "2: OSError: a b"),
        ("import no_such_module\n", "1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("from json import nothing\n", "1: ImportError: cannot import name 'nothing' from 'json'"),
        ("raise SystemExit(3)\n", "1: SystemExit: 3"),
        ("import json\njson.loads('x')\n", "2: JSONDecodeError: Expecting value"),
        (f"raise ValueError('{'x' * 5000}')\n", f"1: ValueError: {'x' * 488}"),
    ],
    ids=lambda text: text[:30],
)
def test_what_a_users_file_raises_is_one_line_with_its_place(registry, own_file, text, said):
    path = own_file(text)
    for action in (registry.load, registry.check):
        message = refusal(lambda action=action: action(f"{path}:NAME"))
        assert message.startswith(f"{path}:{said}") and len(message) < 1000
    own_file("def NAME(): ...\n")  # nothing of the first import is left
    assert callable(Registry("test", {}).load(f"{path}:NAME"))


def test_a_file_that_is_not_text_is_named(own_file):
    path = own_file("\0")
    assert (
        refusal(lambda: REWARDS.load(f"{path}:NAME"))
        == f"{path}: source code string cannot contain null bytes"
    )


def test_what_a_users_package_raises_is_one_line_with_its_place(own_file, monkeypatch):
    path = own_file("\nraise RuntimeError('no')\n", "own_package_that_fails/rewards.py")
    monkeypatch.syspath_prepend(path.parents[1])
    assert (
        refusal(lambda: REWARDS.load("own_package_that_fails.rewards:NAME")) == f"{path}:2: RuntimeError: no"
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("raise MemoryError\n", MemoryError),
        ("raise KeyboardInterrupt\n", KeyboardInterrupt),
        ("raise ModuleNotFoundError(name='vllm')\n", ModuleNotFoundError),  # the entry point names the extra
    ],
)
def test_what_is_no_mistake_of_a_users_file_passes(own_file, text, error):
    with pytest.raises(error):
        REWARDS.load(f"{own_file(text)}:NAME")


def test_a_program_may_name_its_own_objects(monkeypatch):
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "of_the_program", print, raising=False)
    monkeypatch.setattr(main, "__spec__", None)  # as in `python FILE`
    assert Registry("test", {}).load("__main__:of_the_program") is print


@every_registry
def test_an_object_of_another_kind_is_refused_where_it_is_named(registry, own_file):
    path = own_file("NAME = 3\n")
    assert refusal(lambda: registry.check(f"{path}:NAME")).startswith(
        f"{registry.setting}={path}:NAME: expected "
    )


def test_a_file_without_the_name_is_refused(own_file):
    path = own_file("def other(samples): ...\n")
    assert refusal(lambda: REWARDS.load(f"{path}:brief")) == f"algo.reward={path}:brief: {path} has no brief"


def test_files_of_the_same_name_in_two_folders_are_two_modules(own_file):
    first, second = (own_file(f"NAME = {n}\n", f"{n}/own.py") for n in (1, 2))
    registry = Registry("test", {})
    assert [registry.load(f"{path}:NAME") for path in (first, second)] == [1, 2]


def test_a_module_is_imported_once_for_all_its_names(own_file):
    path = own_file("class Counter: ...\nONE = TWO = Counter()\n")
    registry = Registry("test", {})
    assert registry.load(f"{path}:ONE") is registry.load(f"{path}:TWO")


def test_a_file_may_be_named_from_the_working_folder(own_file, monkeypatch):
    path = own_file("NAME = 1\n", "near.py")
    monkeypatch.chdir(path.parent)
    assert Registry("test", {}).load("near.py:NAME") == 1


def test_a_registered_name_is_as_good_as_a_built_in_one_until_it_is_removed():
    registry = Registry("test", {"built_in": "json:dumps"})
    registry.register("own", len)
    assert registry.names == ["built_in", "own"] and registry.load("own") is len
    registry.check("own")
    for taken in ("built_in", "own"):
        with pytest.raises(ValueError, match=re.escape(f"test={taken} exists already")):
            registry.register(taken, len)
    registry.unregister("own")
    assert refusal(lambda: registry.load("own")).startswith("test=own: expected one of built_in")


def test_a_plain_function_is_a_reward_that_needs_no_metarm(own_file):
    path = own_file(
        "from ralign.engine.algorithms.rewards import Reward\n"
        "def brief(samples): return samples.correct\n"
        "AUDITED = Reward(brief, needs_metarm=True)\n"
    )
    run = parse(GenRMRun(), [f"algo.reward={path}:brief", "metarm.kind=none"])
    validate(run, 1)
    assert isinstance(REWARDS.load(run.algo.reward), Reward)
    run.algo.reward = f"{path}:AUDITED"
    assert (
        refusal(lambda: validate(run, 1))
        == f"algo.reward={path}:AUDITED needs a MetaRM, got metarm.kind=none"
    )
    run.metarm.kind = "rule"
    validate(run, 1)


def test_a_metarms_own_check_is_part_of_validation(own_file):
    path = own_file(
        "from ralign.engine.judging.metarm import RuleMetaRM\n"
        "from ralign.engine.judging.metarms import MetaRMKind\n"
        "from ralign.engine.runtime.errors import UserError\n"
        "def check(config):\n"
        "    if config.model is None: raise UserError('metarm.model is missing')\n"
        "OWN = MetaRMKind(open=lambda config, context: RuleMetaRM(), check_settings=check)\n"
    )
    run = parse(GenRMRun(), [f"metarm.kind={path}:OWN"])
    assert refusal(lambda: validate(run, 1)) == "metarm.model is missing"
    run.metarm.model = "m"
    validate(run, 1)
    assert isinstance(METARMS.load(run.metarm.kind), MetaRMKind)


@pytest.mark.parametrize(
    "setting", ["algo.advantages", "algo.objective", "algo.reward", "metarm.kind", "model.family"]
)
def test_validation_refuses_an_unknown_name_of_every_registry(setting):
    run = parse(GenRMRun(), [f"{setting}=nope"])
    assert refusal(lambda: validate(run, 1)).startswith(f"{setting}=nope: expected one of ")
