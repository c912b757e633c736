"""ralign-export: write the weights of a checkpoint as a Hugging Face folder, in one process and without a model.

    ralign-export runs/r_align_32b/r_align/checkpoints/step00000120 exported/

A checkpoint holds complete tensors under Hugging Face's names, independent of the layout that wrote it. They are read
one output file at a time, which bounds the memory.
"""

import argparse
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ralign.engine.checkpoint import folders
from ralign.engine.runtime.argparse_utils import Parser
from ralign.engine.runtime.entry_point import run_main
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import mistakes

if TYPE_CHECKING:  # it imports torch
    from torch.distributed.checkpoint.metadata import Metadata

MAX_FILE_BYTES = 4 << 30
_INDEX = "model.safetensors.index.json"
_WEIGHTS = "param/"


def main() -> None:
    """The console script."""
    run_main(_main)


def _main(argv: list[str]) -> None:
    parser = Parser(
        prog="ralign-export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "checkpoint", type=Path, help="folder of a step, or of all checkpoints (takes the newest)"
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument(
        "--model", type=Path, help="folder with config.json and tokenizer (default: the run's model)"
    )
    args = parser.parse_args(argv)
    path = args.checkpoint
    if not (path / folders.MANIFEST).exists() and (steps := folders.complete(path)):
        path = steps[-1]
    num_tensors, num_bytes = export(path, args.out, args.model)
    print(f"{path}: {num_tensors} tensors, {num_bytes / 2**30:.2f} GiB, in {args.out}")


def export(checkpoint: Path, out: Path, model: Path | None = None) -> tuple[int, int]:
    """Write config, tokenizer and weights, and return the numbers of tensors and bytes.

    The weights have the run's dtype, or bf16 if it is unknown.

    Raises:
        UserError: the checkpoint is damaged or has what no save writes, its model is unknown, or `out` cannot be
            written; then nothing is left of the attempt.
    """
    from ralign.engine.checkpoint.safe_load import Refused

    manifest = folders.check(checkpoint)
    settings = _settings(checkpoint)
    source = model or _model_of(checkpoint, settings)
    valid_vocab = _vocab_size(source / "config.json")
    _check_out(out, checkpoint, source)
    if fault := folders.find_fault(checkpoint, manifest, rank=0, world_size=1):
        raise folders.unreadable(checkpoint, fault)
    is_fp32 = settings is not None and settings["parallel"]["dtype"] == "fp32"
    with _replacing(out) as draft:
        for file in source.iterdir():
            if file.is_file() and file.suffix != ".safetensors" and file.name != _INDEX:
                with mistakes("copy", file):
                    shutil.copyfile(file, draft / file.name)
        try:
            return _write(checkpoint, manifest, draft, is_fp32, valid_vocab)
        except Refused as error:
            raise folders.unreadable(checkpoint, str(error)) from error


def _check_out(out: Path, checkpoint: Path, source: Path) -> None:
    """Raises UserError if the export would write into its own inputs, or cannot make a folder."""
    with mistakes("write", out):
        if out.exists() and not out.is_dir():
            raise UserError(f"cannot write {out}: it is not a folder")
        for folder, what in ((checkpoint, "the checkpoint"), (source, "the model")):
            if folder.resolve() in (out.resolve(), *out.resolve().parents):
                raise UserError(f"cannot write {out}: it is in the folder of {what}, {folder}")


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A folder to write into. Its files take the place of an earlier export's in `out` when the block ends well.

    A folder that exists keeps its other files. Its index goes first and the new one comes last, so that no kill leaves
    a folder that loads with weights of two exports.

    Raises:
        UserError: the files cannot be written; then `out` is as it was, unless the error came while they were moved.
    """
    is_there = out.is_dir()
    draft = (
        out / f".export.{os.getpid()}.part" if is_there else out.with_name(f".{out.name}.{os.getpid()}.part")
    )
    with mistakes("write", out):
        draft.mkdir(parents=True)
        try:
            yield draft
            if is_there:
                _move(draft, out)
            else:
                draft.rename(out)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _move(draft: Path, out: Path) -> None:
    (out / _INDEX).unlink(missing_ok=True)
    for stale in out.glob("*.safetensors"):
        stale.unlink()
    for file in sorted(draft.iterdir(), key=lambda file: file.name == _INDEX):
        os.replace(file, out / file.name)


def _model_of(checkpoint: Path, settings: dict | None) -> Path:
    if settings is None:
        raise UserError(
            f"{checkpoint}: no config.json of a run above it; give the model's folder with --model"
        )
    hf_path = settings["model"]["hf_path"]
    return Path(hf_path) if hf_path else _run_folder(checkpoint) / "model"


def _vocab_size(config: Path) -> int:
    if not config.is_file():
        raise UserError(f"{config}: no such file; give the model's folder with --model")
    with mistakes("read", config):
        text = config.read_text(encoding="utf-8", errors="replace")
    try:
        size = json.loads(text)["vocab_size"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{config}: no model's config.json (its vocab_size cannot be read)") from error
    if type(size) is not int or size < 1:
        raise UserError(f"{config}: vocab_size is {size!r}")
    return size


def _write(
    checkpoint: Path, manifest: folders.Manifest, out: Path, is_fp32: bool, valid_vocab: int
) -> tuple[int, int]:
    import torch
    from ralign.engine.checkpoint import safe_load

    metadata = safe_load.read_metadata(checkpoint, manifest.sizes)
    shapes = _shapes(metadata)
    weight_map, total_bytes = {}, 0
    for number, names in enumerate(_files(shapes)):
        whole = {_WEIGHTS + name: torch.empty(shapes[name], dtype=torch.float32) for name in names}
        safe_load.read_tensors(checkpoint, metadata, whole)
        tensors = {
            name: _valid_rows(name, whole[_WEIGHTS + name], valid_vocab).to(
                torch.float32 if is_fp32 else torch.bfloat16
            )
            for name in names
        }
        file = f"model-{number:05d}.safetensors"
        _save(tensors, out / file)
        weight_map |= dict.fromkeys(names, file)
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (out / _INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return len(weight_map), total_bytes


def _shapes(metadata: "Metadata") -> dict[str, tuple[int, ...]]:
    """The shape of each weight of the policy, by its name in Hugging Face's files."""
    from ralign.engine.checkpoint.safe_load import METADATA, Refused
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    shapes = {}
    for name, entry in metadata.state_dict_metadata.items():
        if name.startswith(_WEIGHTS):
            if not isinstance(entry, TensorStorageMetadata):
                raise Refused(f"{METADATA} has no shape of {name}")
            shapes[name.removeprefix(_WEIGHTS)] = tuple(entry.size)
    if not shapes:
        raise Refused(f"{METADATA} has no weights")
    return shapes


def _save(tensors: Mapping, file: Path) -> None:
    """Raises OSError if the file cannot be written, for example on a full disk."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: x.contiguous() for name, x in tensors.items()}, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(" ".join(str(error).split())) from error


def _files(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Tensor names of each output file. Only a file with a single tensor may exceed MAX_FILE_BYTES."""
    names: list[str] = []
    num_bytes = 0
    for name, shape in sorted(shapes.items()):
        size = 4 * math.prod(shape)
        if names and num_bytes + size > MAX_FILE_BYTES:
            yield names
            names, num_bytes = [], 0
        names.append(name)
        num_bytes += size
    if names:
        yield names


def _valid_rows(name: str, tensor, valid_vocab: int):
    """The tensor without padding rows of the vocabulary."""
    return tensor[:valid_vocab] if name in ("model.embed_tokens.weight", "lm_head.weight") else tensor


def _run_folder(checkpoint: Path) -> Path:
    return checkpoint.absolute().parents[2]  # RUN/STAGE/checkpoints/STEP


def _settings(checkpoint: Path) -> dict | None:
    """The settings of the run that has the checkpoint; None if it is in no run's folder."""
    if len(checkpoint.absolute().parents) < 3:
        return None
    path = _run_folder(checkpoint) / "config.json"
    if not path.is_file():
        return None
    with mistakes("read", path):
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        settings = json.loads(text)
        hf_path, dtype = settings["model"]["hf_path"], settings["parallel"]["dtype"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: not the settings of a run (model.hf_path and parallel.dtype)") from error
    if not isinstance(hf_path, str | None) or not isinstance(dtype, str):
        raise UserError(
            f"{path}: not the settings of a run (model.hf_path={hf_path}, parallel.dtype={dtype})"
        )
    return settings


if __name__ == "__main__":
    main()
