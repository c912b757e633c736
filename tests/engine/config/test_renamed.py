"""Old names of settings: none is in use any more, each leads to settings that there are, and the error names them."""

from dataclasses import fields, is_dataclass

import pytest
from ralign.engine.config.actor import ActorRun
from ralign.engine.config.command_line import parse
from ralign.engine.config.renamed import RENAMED, REPLACED
from ralign.engine.config.run import GenRMRun
from ralign.engine.judging.annotate import AnnotateConfig
from ralign.engine.runtime.errors import UserError
from ralign.recipes.paper.config import PaperRun


def leaves(node, prefix="") -> dict[str, object]:
    """Every setting of a tree by its dotted name."""
    found = {}
    for item in fields(node):
        value = getattr(node, item.name)
        found |= (
            leaves(value, f"{prefix}{item.name}.") if is_dataclass(value) else {prefix + item.name: value}
        )
    return found


TREES = [GenRMRun(), ActorRun(), AnnotateConfig(), PaperRun()]
CURRENT = set().union(*(leaves(tree) for tree in TREES))


def is_current(name: str) -> bool:
    """Of a setting or, with a dot at its end, of a group."""
    return any(leaf.startswith(name) for leaf in CURRENT) if name.endswith(".") else name in CURRENT


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_is_out_of_use_and_its_new_ones_are_in_use(old):
    assert not is_current(old)
    for new in RENAMED[old]:
        assert is_current(new) and new.endswith(".") == old.endswith(".")


def old_names(tree) -> dict[str, str]:
    """Old name -> new name of every setting of this tree that has been renamed."""
    if isinstance(tree, PaperRun):
        return {
            f"{part}.{old}": f"{part}.{new}"
            for part, run in (("judges", tree.judges), ("actors", tree.actors))
            for old, new in old_names(run).items()
        }
    exact = {old: new for old, news in RENAMED.items() for new in news if new in leaves(tree)}
    group = {GenRMRun: "metarm.", ActorRun: "genrm.", AnnotateConfig: "annotator."}[
        next(kind for kind in (GenRMRun, ActorRun, AnnotateConfig) if isinstance(tree, kind))
    ]
    moved = [new for new in leaves(tree) if new.startswith(group) and new not in exact.values()]
    return exact | {"judge." + new.removeprefix(group): new for new in moved}


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: type(tree).__name__)
def test_parse_answers_an_old_name_with_the_new_one(tree):
    renamed = old_names(tree)
    assert len(renamed) >= 16
    for old, new in renamed.items():
        with pytest.raises(UserError) as refused:
            parse(tree, [f"{old}=value"])
        assert str(refused.value) == f"{old} is now {new}: give {new}=value"


def test_the_settings_of_a_judge_have_the_names_that_a_user_of_earlier_versions_needs():
    assert {
        "judge.metarm": "metarm.kind",
        "judge.model": "metarm.model",
        "judge.server.devices": "metarm.server.devices",
    }.items() <= old_names(GenRMRun()).items()
    assert {
        "actor.genrm": "genrm.model",
        "judge.max_new_tokens": "genrm.max_new_tokens",
        "actor.seats": "actor.order",
    }.items() <= old_names(ActorRun()).items()
    assert {"judge.base_url": "annotator.base_url"}.items() <= old_names(AnnotateConfig()).items()


@pytest.mark.parametrize("tree", [GenRMRun(), PaperRun()], ids=lambda tree: type(tree).__name__)
def test_settings_that_replace_another_one_can_be_given(tree):
    prefix = "judges." if isinstance(tree, PaperRun) else ""
    for old, new in REPLACED.items():
        assert not is_current(old)
        settings = [prefix + setting for setting in new.split()]
        with pytest.raises(UserError) as refused:
            parse(tree, [f"{prefix}{old}=True"])
        assert str(refused.value) == f"{prefix}{old} is gone: {prefix}{old}=True is now {' '.join(settings)}"
        assert parse(tree, settings) != tree


def test_a_name_that_never_was_is_unknown():
    for name in ("judge.metarms", "judge", "actor.judges"):
        with pytest.raises(UserError, match=f"unknown setting {name}=1"):
            parse(GenRMRun(), [f"{name}=1"])
