"""Loads Hugging Face folders into a sharded Megatron model, and exports them.

Loading: every rank opens the safetensors files and reads its own slices only; no rank holds a full model.
Export: the first rank of each pipeline stage gathers one tensor at a time and writes files of bounded size.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from ralign.engine.policy.model import PackedGPT
from ralign.engine.policy.param_names import ParamMap, param_map
from ralign.engine.runtime.cluster import Cluster
from ralign.engine.runtime.errors import UserError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

MAX_FILE_BYTES = 4 << 30
_ROWS = 8192  # that are compared at once
_INDEX = "model.safetensors.index.json"


def parameter_maps(model: PackedGPT, cluster: Cluster) -> Iterator[tuple[str, Tensor, ParamMap]]:
    """(Megatron name, local parameter, its map) for every parameter of this stage, in the model's order."""
    first_layer = cluster.pp_rank * (model.config.num_layers // cluster.pp_size)
    tied = model.share_embeddings_and_output_weights
    for name, parameter in model.named_parameters():
        yield name, parameter, param_map(name, model.family, model.sizes, first_layer=first_layer, tied=tied)


@torch.no_grad()
def load(model: PackedGPT, cluster: Cluster, folder: str | Path) -> None:
    """Copies this rank's slices of a folder's weights into the model's parameters, in place.

    Raises:
        UserError: there are no safetensors files, a tensor is missing or has another shape, or config.json ties the
            output layer to the embedding and the two differ in the files.
    """
    files = _files_by_tensor(Path(folder))
    handles: dict[str, safe_open] = {}
    if model.share_embeddings_and_output_weights and cluster.is_first_rank:
        _check_tied(files, Path(folder))
    for _, parameter, mapping in parameter_maps(model, cluster):
        parts = parameter.data.split(mapping.local_rows(cluster.tp_size))
        for name, part in zip(mapping.hf, parts, strict=True):
            if name not in files and mapping.may_be_missing:
                part.zero_()
                continue
            if name not in files:
                raise UserError(f"{folder}: no tensor named {name}")
            file = files[name]
            if file not in handles:
                handles[file] = safe_open(Path(folder) / file, framework="pt")
            _read_slice(handles[file].get_slice(name), part, mapping, cluster, f"{folder}: {name}")


def _files_by_tensor(folder: Path) -> dict[str, str]:
    if (folder / _INDEX).exists():
        return json.loads((folder / _INDEX).read_text())["weight_map"]
    single = folder / "model.safetensors"
    if not single.exists():
        raise UserError(f"{folder}: neither {_INDEX} nor model.safetensors is there")
    with safe_open(single, framework="pt") as file:
        return dict.fromkeys(file.keys(), single.name)


def _check_tied(files: dict[str, str], folder: Path) -> None:
    """A head in the files of a tied model must equal the embedding: otherwise its values would be lost in silence."""
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    if head not in files or embedding not in files:
        return
    with safe_open(folder / files[embedding], framework="pt") as first:
        with safe_open(folder / files[head], framework="pt") as second:
            one, other = first.get_slice(embedding), second.get_slice(head)
            num_rows = one.get_shape()[0]
            is_same = one.get_shape() == other.get_shape() and all(
                torch.equal(one[start : start + _ROWS], other[start : start + _ROWS])
                for start in range(0, num_rows, _ROWS)
            )
    if not is_same:
        raise UserError(
            f"{folder}: config.json sets tie_word_embeddings, but {head} differs from {embedding} in the files; set "
            "tie_word_embeddings to false there to train both"
        )


def _read_slice(source, part: Tensor, mapping: ParamMap, cluster: Cluster, where: str) -> None:
    shape = list(source.get_shape())
    expected = list(part.shape)
    if mapping.split_dim is not None:
        expected[mapping.split_dim] *= cluster.tp_size
    start = cluster.tp_rank * part.shape[mapping.split_dim or 0]
    if mapping.is_vocab:
        num_rows = max(0, min(shape[0] - start, part.shape[0]))
        part.zero_()
        if num_rows:
            part[:num_rows].copy_(source[start : start + num_rows])
        return
    if shape != expected:
        raise UserError(f"{where} has shape {shape}; by the model's config.json it is {expected}")
    if mapping.split_dim is None:
        part.copy_(source[:])
    elif mapping.split_dim == 0:
        part.copy_(source[start : start + part.shape[0]])
    else:
        part.copy_(source[:, start : start + part.shape[1]])


@torch.no_grad()
def export(model: PackedGPT, cluster: Cluster, source: str | Path, target: str | Path) -> None:
    """Writes a folder that transformers and vLLM load: weights from the model, all other files from `source`.

    Collective over all ranks. Tensors have the parameters' dtype and no padding rows of the vocabulary.
    """
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    if cluster.is_first_rank:
        for file in Path(source).iterdir():
            if file.is_file() and file.suffix != ".safetensors" and file.name != _INDEX:
                shutil.copyfile(file, target / file.name)
        for stale in [*target.glob("*.safetensors"), target / _INDEX]:
            stale.unlink(missing_ok=True)
    dist.barrier()
    weight_map, num_bytes = _write_files(model, cluster, target)
    maps: list = [None] * dist.get_world_size()
    dist.all_gather_object(maps, (weight_map, num_bytes))
    if cluster.is_first_rank:
        index = {
            "metadata": {"total_size": sum(count for _, count in maps)},
            "weight_map": dict(sorted(item for names, _ in maps for item in names.items())),
        }
        (target / _INDEX).write_text(json.dumps(index, indent=1))
    dist.barrier()


def _write_files(model: PackedGPT, cluster: Cluster, target: Path) -> tuple[dict[str, str], int]:
    """Writes this rank's files; returns {tensor: file} and the bytes, empty on ranks that do not write."""
    is_writer = cluster.tp_rank == cluster.dp_rank == cluster.cp_rank == 0
    pending: dict[str, Tensor] = {}
    weight_map: dict[str, str] = {}
    pending_bytes = total_bytes = num_files = 0

    def flush() -> None:
        nonlocal pending_bytes, num_files
        if pending:
            file = f"model-stage{cluster.pp_rank:02d}-{num_files:05d}.safetensors"
            save_file(pending, target / file, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(pending, file))
            pending.clear()
            pending_bytes, num_files = 0, num_files + 1

    for name, parameter, mapping in parameter_maps(model, cluster):
        if name == "output_layer.weight" and model.share_embeddings_and_output_weights:
            continue  # the last stage's copy of a tied embedding
        tensors = _gather(model, cluster, parameter, mapping)
        if is_writer:
            pending.update(tensors)
            num_bytes = sum(tensor.nbytes for tensor in tensors.values())
            pending_bytes, total_bytes = pending_bytes + num_bytes, total_bytes + num_bytes
            if pending_bytes > MAX_FILE_BYTES:
                flush()
    flush()
    return weight_map, total_bytes


def _gather(model: PackedGPT, cluster: Cluster, parameter: Tensor, mapping: ParamMap) -> dict[str, Tensor]:
    """The full Hugging Face tensors of one parameter, on the CPU."""
    shards = [parameter.data]
    if mapping.split_dim is not None and cluster.tp_size > 1:
        shards = [torch.empty_like(parameter.data) for _ in range(cluster.tp_size)]
        dist.all_gather(shards, parameter.data.contiguous(), group=cluster.tp_group)
    sizes = mapping.local_rows(cluster.tp_size)
    parts = [shard.split(sizes) for shard in shards]
    tensors = {}
    for index, name in enumerate(mapping.hf):
        pieces = [part[index] for part in parts]
        full = torch.cat(pieces, dim=mapping.split_dim or 0) if len(pieces) > 1 else pieces[0]
        if mapping.is_vocab:
            full = full[: model.valid_vocab]
        tensors[name] = full.to("cpu", copy=True).contiguous()
    return tensors
