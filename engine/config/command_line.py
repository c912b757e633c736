"""From a command line to settings: `field.sub=value` overrides and `--help`.

tyro reads the dataclasses (types, defaults, the text under each field), prints the help and parses the values. Its own
syntax is `--optim.lr 2e-6`. Recipes also take `optim.lr=2e-6`, so this file splits the command line itself.
"""

import contextlib
import difflib
import io
import os
import sys
import types
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, make_dataclass, replace
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from ralign.engine.config.renamed import REPLACED, new_names
from ralign.engine.runtime.entry_point import rank
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.problems import Problems

RunT = TypeVar("RunT")

SMOKE_FLAG = "--smoke"  # of the GPU recipes: run the recipe in miniature on a CPU

_HOW = "Settings are given as field.sub=value, for example optim.lr=2e-6 (or --optim.lr 2e-6)."


def parse(default: RunT, argv: Sequence[str], description: str | None = None) -> RunT:
    """Applies the overrides in `argv` to `default`, a tree of dataclasses.

    `a.b=value`, `--a.b=value` and `--a.b value` are equivalent; the last of several wins. `None` empties an optional
    field. `--help` prints `description` and every field with its meaning and default (on rank 0), and exits with
    status 0.

    Raises:
        UserError: unknown names, values of the wrong type, or values that a dataclass rejects: all of them.
    """
    if "-h" in argv or "--help" in argv:
        text = "\n\n".join(part.strip() for part in (description or type(default).__doc__ or "", _HOW))
        _help(default, text)
    annotations = _leaves(type(default))
    values: dict[str, Any] = {}
    problems = Problems()
    for name, value in _overrides(argv, problems):
        with problems.collect():
            if name not in annotations:
                raise UserError(_unknown(name, value, annotations))
            values[name] = _value(name, value, annotations[name])
    replaced = _replace(default, values, problems)
    problems.check()
    return replaced


def _help(default: Any, description: str) -> NoReturn:
    tyro.cli(
        type(default),
        default=default,
        args=["--help"],
        prog=os.path.basename(sys.argv[0]),
        description=description,
        use_underscores=True,
        console_outputs=rank() == 0,
        config=(tyro.conf.FlagConversionOff,),
    )
    raise AssertionError("--help exits")


def _leaves(cls: type, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> type of every setting of a dataclass."""
    leaves: dict[str, Any] = {}
    hints = get_type_hints(cls)
    for item in fields(cls):
        hint = hints[item.name]
        if isinstance(hint, type) and is_dataclass(hint):
            leaves |= _leaves(hint, f"{prefix}{item.name}.")
        else:
            leaves[prefix + item.name] = hint
    return leaves


def _overrides(argv: Sequence[str], problems: Problems) -> list[tuple[str, str]]:
    """Split the command line into pairs of name and value; what is neither goes to `problems`."""
    overrides = []
    tokens = iter(argv)
    for token in tokens:
        name, equals, value = token.partition("=")
        if not equals and not token.startswith("--"):
            problems.add(f"cannot read {token!r}: settings are given as field.sub=value (see --help)")
            continue
        if not equals:
            following = next(tokens, None)
            if following is None:
                problems.add(f"{token} needs a value (see --help)")
                continue
            value = following
        overrides.append((name.removeprefix("--").replace("-", "_"), value))
    return overrides


def _unknown(name: str, value: str, annotations: dict[str, Any]) -> str:
    # A recipe with several trees prefixes its settings, for example actors.genrm.model.
    prefixes = {"", *(leaf.partition(".")[0] + "." for leaf in annotations)}
    renamed = [
        prefix + new
        for prefix in sorted(prefixes)
        if name.startswith(prefix)
        for new in new_names(name.removeprefix(prefix))
        if prefix + new in annotations
    ]
    if renamed:
        return f"{name} is now {' or '.join(renamed)}: give {renamed[0]}={value}"
    for prefix in sorted(prefixes):
        if new := REPLACED.get(name.removeprefix(prefix) if name.startswith(prefix) else ""):
            settings = " ".join(prefix + setting for setting in new.split())
            return f"{name} is gone: {name}=True is now {settings}"
    inside = [leaf for leaf in annotations if leaf.startswith(f"{name}.")]
    if inside:
        return f"{name} is a group of settings: give one of {', '.join(inside)}"
    close = difflib.get_close_matches(name, annotations, n=3)
    same_end = [leaf for leaf in annotations if leaf.rpartition(".")[2] == name.rpartition(".")[2]]
    hint = " or ".join(dict.fromkeys(same_end[:3] or close))
    return f"unknown setting {name}={value}" + (f": did you mean {hint}?" if hint else " (--help lists all)")


def _spell(value: str, annotation: Any) -> str:
    """The value as tyro spells it: True, False or None in any case."""
    literals = {"true": "True", "false": "False"} if annotation is bool else {}
    if types.NoneType in get_args(annotation):
        literals |= {"none": "None", "null": "None"}
    return literals.get(value.lower(), value)


def _value(name: str, text: str, annotation: Any) -> Any:
    """One value, parsed by tyro."""
    leaf = make_dataclass("Leaf", [("value", annotation)])
    try:
        # tyro reports a bad value in a box of many lines; our message is one line.
        with contextlib.redirect_stderr(io.StringIO()):
            if get_origin(annotation) is tuple:
                args = ["--value", *text.split(",")]
            else:
                args = [f"--value={_spell(text, annotation)}"]
            parsed = tyro.cli(leaf, args=args, config=(tyro.conf.FlagConversionOff,))
    except SystemExit:
        raise UserError(f"{name}={text}: expected {_expected(annotation)}") from None
    return parsed.value


def _replace(node: Any, values: dict[str, Any], problems: Problems, prefix: str = "") -> Any:
    """A copy of the tree with the values set. Each dataclass is built once and so checks its final values.

    A dataclass that rejects them stays as it was, and its message goes to `problems`.
    """
    changes = {}
    for item in fields(node):
        name, value = prefix + item.name, getattr(node, item.name)
        if is_dataclass(value):
            changes[item.name] = _replace(value, values, problems, f"{name}.")
        elif name in values:
            changes[item.name] = values[name]
    try:
        return replace(node, **changes)
    except UserError as error:
        problems.add(f"{prefix.removesuffix('.')}: {error}")
        return node


def _expected(annotation: Any) -> str:
    if annotation is types.NoneType:
        return "None"
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_expected(option) for option in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"{_expected(get_args(annotation)[0])}, or several with commas between"
    plain = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
    return plain.get(annotation, str(annotation))
