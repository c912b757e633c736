"""ralign-export: write the weights of a checkpoint as a Hugging Face folder, in one process and without a model.

    ralign-export runs/r_align_32b/r_align/checkpoints/step00000120 exported/

A checkpoint holds complete tensors under Hugging Face's names, independent of the layout that wrote it. They are read
one output file at a time, which bounds the memory.
"""

import argparse
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from ralign.engine.checkpoint import folders
from ralign.engine.runtime.argparse_utils import Parser
from ralign.engine.runtime.entry_point import run_main
from ralign.engine.runtime.errors import UserError

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
        UserError: the checkpoint is damaged, or its model is unknown.
    """
    import torch

    manifest = folders.check(checkpoint)
    if altered := folders.find_altered(checkpoint, manifest, rank=0, world_size=1):
        raise folders.unreadable(checkpoint, f"the checksum of {altered} does not match")
    settings = _settings(checkpoint)
    source = model or _model_of(checkpoint, settings)
    is_fp32 = settings is not None and settings["parallel"]["dtype"] == "fp32"
    config = source / "config.json"
    if not config.is_file():
        raise UserError(f"{config}: no such file; give the model's folder with --model")
    valid_vocab = json.loads(config.read_text(encoding="utf-8"))["vocab_size"]

    out.mkdir(parents=True, exist_ok=True)
    for stale in [*out.glob("*.safetensors"), out / _INDEX]:
        stale.unlink(missing_ok=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name != _INDEX:
            shutil.copyfile(file, out / file.name)
    return _write(checkpoint, out, torch.float32 if is_fp32 else torch.bfloat16, valid_vocab)


def _model_of(checkpoint: Path, settings: dict | None) -> Path:
    if settings is None:
        raise UserError(
            f"{checkpoint}: no config.json of a run above it; give the model's folder with --model"
        )
    hf_path = settings["model"]["hf_path"]
    return Path(hf_path) if hf_path else _run_folder(checkpoint) / "model"


def _write(checkpoint: Path, out: Path, dtype, valid_vocab: int) -> tuple[int, int]:
    import torch
    from safetensors.torch import save_file
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(checkpoint)
    shapes = {
        name.removeprefix(_WEIGHTS): cast(TensorStorageMetadata, tensor).size
        for name, tensor in reader.read_metadata().state_dict_metadata.items()
        if name.startswith(_WEIGHTS)
    }
    weight_map, total_bytes = {}, 0
    for number, names in enumerate(_files(shapes)):
        whole = {_WEIGHTS + name: torch.empty(shapes[name], dtype=torch.float32) for name in names}
        load(whole, storage_reader=FileSystemReader(checkpoint), no_dist=True)
        tensors = {name: _valid_rows(name, whole[_WEIGHTS + name], valid_vocab).to(dtype) for name in names}
        file = f"model-{number:05d}.safetensors"
        save_file(
            {name: x.contiguous() for name, x in tensors.items()}, out / file, metadata={"format": "pt"}
        )
        weight_map |= dict.fromkeys(names, file)
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (out / _INDEX).write_text(json.dumps(index, indent=1))
    return len(weight_map), total_bytes


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
    path = _run_folder(checkpoint) / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


if __name__ == "__main__":
    main()
