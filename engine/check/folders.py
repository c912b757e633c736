"""Checks of model folders and data files, without reading the weights."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from ralign.engine.check.machine import Torch
from ralign.engine.check.report import Finding, fail, ok, warn
from ralign.engine.config.actor import ActorRun
from ralign.engine.config.registry import FAMILIES
from ralign.engine.config.run import Run
from ralign.engine.data.pairs import scan_pairs
from ralign.engine.planner.shapes import PUBLISHED, Shape, shape_of_hf
from ralign.engine.runtime.errors import UserError

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
_NUM_SHOWN = 3


class BadFolder(Exception):
    """The reason why the model of a folder cannot be loaded, and the next step."""

    def __init__(self, found: str, next_step: str):
        super().__init__(found)
        self.found, self.next_step = found, next_step


def check_model(run: Run, torch: Torch | None) -> Finding:
    """The policy's initial folder is complete, of a supported family, and has a sufficient context length."""
    try:
        FAMILIES.check(run.model.family)  # a family from an import path is known from here on
    except UserError as error:
        return fail("model", str(error), _supported())
    if run.model.hf_path is None:
        return ok(
            "model", f"a new {run.model.family} model of {run.model.num_layers} layers, made by the run"
        )
    return _check_start("model", run.model.hf_path, run, torch)


def check_critic(run: Run, torch: Torch | None) -> Finding | None:
    """The same for the folder of a critic; None without one."""
    if not run.has_critic or run.critic.hf_path is None:
        return None
    return _check_start("critic", run.critic.hf_path, run, torch)


def _check_start(check: str, folder: str, run: Run, torch: Torch | None) -> Finding:
    try:
        num_files, num_bytes = complete_folder(Path(folder))
        shape = folder_shape(Path(folder))
        context = _check_context(Path(folder), run)
        if torch is None:
            step = "see the line on torch; the family is checked when it imports"
            return warn(check, f"{folder}: complete; its architecture was not checked without torch", step)
        check_architecture(Path(folder))
    except BadFolder as bad:
        return fail(check, f"{folder}: {bad.found}", bad.next_step)
    found = f"{folder}: {shape.family}, {shape.num_parameters / 1e9:.2f} B parameters,"
    return ok(check, f"{found} {num_files} file(s) with {num_bytes / 1e9:.1f} GB, complete; {context}")


def complete_folder(folder: Path) -> tuple[int, int]:
    """Number and bytes of a folder's weight files.

    Raises:
        BadFolder: configuration, tokenizer or a part of the weights is missing, or a file is truncated.
    """
    if not folder.is_dir():
        raise BadFolder("no such folder", f"{_download(folder)}, or name another folder")
    if not (folder / "config.json").is_file():
        raise BadFolder("config.json is missing", f"{_download(folder)} again")
    read_json(folder / "config.json")
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        names = " or ".join(" with ".join(names) for names in _TOKENIZERS)
        raise BadFolder(f"no tokenizer ({names})", f"{_download(folder)} again")
    expected = _expected_tensors(folder)
    missing = [name for name in expected if not (folder / name).is_file()]
    if missing:
        shown = ", ".join(missing[:_NUM_SHOWN]) + (", ..." if len(missing) > _NUM_SHOWN else "")
        raise BadFolder(
            f"{len(missing)} of {len(expected)} weight files are missing ({shown})",
            f"{_download(folder)} again: it fetches what is missing",
        )
    for name, tensors in expected.items():
        _check_file(folder / name, tensors)
    return len(expected), sum((folder / name).stat().st_size for name in expected)


def _expected_tensors(folder: Path) -> dict[str, set[str]]:
    """Weight file -> its tensors by the index; without an index, the single file."""
    if (folder / _INDEX).is_file():
        files: dict[str, set[str]] = {}
        weight_map = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise BadFolder(f"{_INDEX} has no weight_map", f"{_download(folder)} again")
        for tensor, name in weight_map.items():
            files.setdefault(str(name), set()).add(tensor)
        return files
    if (folder / _SINGLE).is_file():
        return {_SINGLE: set()}
    raise BadFolder(
        f"neither {_INDEX} nor {_SINGLE} exists", "only safetensors are read: download or convert them"
    )


def _check_file(file: Path, tensors: set[str]) -> None:
    """A safetensors file has the length and the tensors of its header, and these tensors. Reads only the header."""
    from safetensors import SafetensorError, safe_open

    again = f"remove it and {_download(file.parent)} again"
    try:
        with safe_open(file, framework="numpy") as opened:
            held = set(opened.keys())
    except (SafetensorError, OSError) as error:
        reason = f"{file.name} ({file.stat().st_size} bytes) is truncated, or not a safetensors file: {error}"
        raise BadFolder(reason, again) from error
    if lacking := sorted(tensors - held):
        raise BadFolder(f"{file.name} lacks {len(lacking)} tensor(s) of the index, {lacking[0]} first", again)


def folder_shape(folder: Path) -> Shape:
    """The sizes in config.json; BadFolder if one is missing or the model is not supported."""
    try:
        return shape_of_hf(read_json(folder / "config.json"), folder.name)
    except UserError as error:
        raise BadFolder(f"config.json: {error}", _supported()) from error


def _supported() -> str:
    return f"use a dense model of {', '.join(FAMILIES.names)}"


def _check_context(folder: Path, run: Run) -> str:
    """The longest sequence against the model's context length, in words."""
    config = read_json(folder / "config.json")
    limit = config.get("max_position_embeddings")
    longest = run.data.max_prompt_tokens + max(run.generator.max_new_tokens, run.eval.max_new_tokens)
    if not isinstance(limit, int):
        raise BadFolder("config.json has no max_position_embeddings", "use a supported model")
    if longest > limit:
        raise BadFolder(
            f"has a context of {limit} tokens, the longest prompt and answer together have {longest}",
            "lower data.max_prompt_tokens, generator.max_new_tokens or eval.max_new_tokens",
        )
    return f"context {limit} for at most {longest} tokens"


def check_architecture(folder: Path) -> None:
    """The trainer's model code accepts the configuration. Imports Megatron.

    Raises:
        BadFolder: a feature that is not supported.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Megatron's, about optional packages
        try:
            from ralign.engine.policy.model import transformer_config
            from ralign.engine.policy.rope import inverse_frequencies
            from transformers import AutoConfig
        except (ImportError, OSError) as error:
            raise BadFolder(
                f"its architecture was not checked: {error}", "see the line on packages"
            ) from error
        alone = cast(Any, SimpleNamespace(tp_size=1, pp_size=1, cp_size=1))  # the plan checks the layout
        try:
            config = AutoConfig.from_pretrained(folder)
            transformer_config(config, alone, dtype="bf16", sequence_parallel=False, recompute=False)
            inverse_frequencies(config)
        except UserError as error:
            raise BadFolder(str(error), _supported()) from error
        except Exception as error:  # any: transformers and Megatron read config.json
            found = f"config.json cannot be used ({type(error).__name__}: {error})"
            raise BadFolder(found, _supported()) from error


def read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadFolder(f"{path.name} cannot be read ({error})", "download it again") from error
    if not isinstance(value, dict):
        raise BadFolder(f"{path.name} is not a JSON object", "download it again")
    return value


def _download(folder: Path) -> str:
    owner = "Qwen" if folder.name in PUBLISHED else "ORG"
    return f"hf download {owner}/{folder.name} --local-dir {folder}"


def check_data(run: Run) -> Finding:
    """The pairs file, read in full as the run reads it."""
    path = run.data.train
    if path is None and run.model.hf_path is not None:
        found = "data.train is not given: the run would train on JudgeWorld's generated pairs"
        return warn("data", found, "give data.train=pairs.jsonl")
    if path is None:
        return ok("data", "JudgeWorld, which the run generates")
    try:
        pairs, reasons = scan_pairs(path, need_golden=not isinstance(run, ActorRun))
    except UserError as error:
        advice = "give a file of JSON lines, a JSON array or Parquet (README; ralign-data convert makes one)"
        return fail("data", str(error), advice)
    found = f"{path}: {len(pairs)} pairs, {len(reasons)} bad lines"
    if reasons:
        found += f", the first at {reasons[0]}"
    fix = f"fix them: ralign-data validate {path} lists all"
    if len(reasons) > run.data.max_bad_lines:
        found += f" (data.max_bad_lines={run.data.max_bad_lines})"
        allow = f", or skip them with data.max_bad_lines={len(reasons)}" if pairs else ""
        return fail("data", found, fix + allow, reasons)
    if not pairs:
        return fail("data", f"{path} holds no pair", "give a file with pairs")
    if run.model.hf_path is not None and len(pairs) <= run.eval.num_pairs:
        step = (
            f"give more pairs, or lower eval.num_pairs={run.eval.num_pairs}: these are held out of training"
        )
        return fail("data", found, step)
    if reasons:
        return warn("data", found, fix, reasons)
    return ok("data", found)
