"""Reads the files of a checkpoint without running code that is in them.

`.metadata` is a pickle; common.pt and the entries of the tensor files are torch's archives, with a pickle in each. A
pickle can call any function of any module while it is read. Here it can name only the classes that a save writes: those
of `_METADATA_CLASSES` in `.metadata`, and elsewhere what torch takes for plain data (`weights_only`; Megatron adds 16
classes of settings and numpy to it). Torch's and Megatron's own readers unpickle `.metadata`, and entries that are not
tensors, without a limit.
"""

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from ralign.engine.runtime.internals import Internal
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.futures import Future

METADATA, COMMON = ".metadata", "common.pt"
SET_ELEMENT = Internal(
    module="torch.distributed.checkpoint._traverse",
    name="set_element",
    purpose="puts a value that is not a tensor at its place in a loaded state",
    read_in="2.13.0",
)
_TORCH = "torch.distributed.checkpoint"
_METADATA_CLASSES = frozenset(
    {("torch", "Size"), ("torch.serialization", "_get_layout")}
    | {("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    | {(f"{_TORCH}.filesystem", name) for name in ("_StorageInfo", "_StoragePrefix")}
    | {
        (f"{_TORCH}.metadata", name)
        for name in (
            "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
            "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
        )
    }
    | {
        (f"{_TORCH}.planner", name)
        for name in ("BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType")
    }
)  # fmt: skip
# What unpickling raises for bytes that are no pickle of these classes.
_DAMAGED = (
    pickle.UnpicklingError, ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError,
    MemoryError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class Refused(RuntimeError):
    """A file of a checkpoint has something that a save does not write; the message names both."""


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _METADATA_CLASSES:
            raise _refused(METADATA, f"{module_name}.{global_name}")
        return super().find_class(module_name, global_name)


def read_metadata(path: Path, sizes: Mapping[str, int]) -> Metadata:
    """The places of all tensors and values in a checkpoint.

    Args:
        path: the checkpoint's folder.
        sizes: bytes of its files by their names; entries may be in no other file.

    Raises:
        Refused: the file names another class, is damaged, or does not fit the other files.
    """
    try:
        with (path / METADATA).open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        _check_metadata(metadata, sizes)
    except Refused:
        raise
    except _DAMAGED as error:
        raise Refused(f"{METADATA} is damaged ({_line(error)})") from error
    if not isinstance(metadata.storage_meta, StorageMeta):
        metadata.storage_meta = StorageMeta()
    return metadata


def _check_metadata(metadata: object, sizes: Mapping[str, int]) -> None:
    """Raises Refused, or an error in `_DAMAGED`, for the right classes in a form that no save writes."""
    if not isinstance(metadata, Metadata):
        raise TypeError(f"it holds {type(metadata).__name__}")
    num_bytes = sum(sizes.values())
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            num_values = math.prod(entry.size)
            if sum(math.prod(chunk.sizes) for chunk in entry.chunks) != num_values:
                raise Refused(f"{METADATA} does not have every part of {name}")
            if not 0 <= num_values * entry.properties.dtype.itemsize <= num_bytes:
                raise Refused(f"{METADATA} has more values of {name} than fit into the files")
        elif not isinstance(entry, BytesStorageMetadata):
            raise TypeError(f"{name} is {type(entry).__name__}")
    for place in metadata.storage_data.values():
        if place.relative_path not in sizes:
            raise Refused(
                f"{METADATA} refers to {place.relative_path!r}, which is no file of this checkpoint"
            )
        if not 0 <= place.offset <= place.offset + place.length <= sizes[place.relative_path]:
            raise Refused(f"{METADATA} refers to bytes beyond the end of {place.relative_path}")
        if place.transform_descriptors:
            raise Refused(f"{METADATA} refers to a transformation: {place.transform_descriptors!r}")


def read_values(file: Path | IO[bytes], name: str) -> Any:
    """Tensors and plain values of torch's archive. `name` is that of the file, for messages.

    Raises:
        Refused: the file names a class that is no plain data, or is damaged.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _not_plain(name, error) from None
    except _DAMAGED as error:
        raise Refused(f"{name} is damaged ({_line(error)})") from error


def read_common(path: Path) -> dict[str, Any]:
    """The plain values of a checkpoint, by the names of a save.

    Raises:
        Refused: as of `read_values`.
    """
    values = read_values(path / COMMON, COMMON)
    common = values.get("common") if isinstance(values, dict) else None
    if not isinstance(common, dict):
        raise Refused(f"{COMMON} has no state of a stage")
    return common


def read_tensors(path: Path, metadata: Metadata, into: dict[str, Tensor]) -> None:
    """Fill whole tensors, by their names in a checkpoint, in one process without process groups.

    Raises:
        Refused: a file is damaged, or has something that a save does not write.
    """
    try:
        load(into, storage_reader=SafeReader(path, metadata), planner=SafePlanner(), no_dist=True)
    except CheckpointException as error:
        raise Refused(reason_of(error)) from error


class SafeReader(FileSystemReader):
    """Reads the files of a checkpoint whose metadata was read already. Torch reads tensors with `weights_only`."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(path)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        try:
            return super().read_data(plan, planner)
        except pickle.UnpicklingError as error:
            files = {self._metadata.storage_data[item.storage_index].relative_path for item in plan.items}
            raise _not_plain(" or ".join(sorted(files)), error) from None


class SafePlanner(DefaultLoadPlanner):
    """Reads entries that are not tensors as plain values; torch's planner unpickles them without a limit."""

    def load_bytes(self, read_item: ReadItem, value: IO[bytes]) -> None:
        assert self.flatten_state_dict and self.metadata is not None
        name = read_item.dest_index.fqn
        file = self.metadata.storage_data[read_item.storage_index].relative_path
        SET_ELEMENT.get()(
            self.original_state_dict, self.mappings[name], read_values(value, f"{file} ({name})")
        )


def reason_of(error: CheckpointException) -> str:
    """The reason of the first failed rank in one line. For a save, only rank 0 knows the reasons."""
    if not error.failures:
        return "another rank failed"
    rank, (cause, _) = min(error.failures.items())
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = " ".join(str(cause).split()).removeprefix("Worker failure: ") or type(cause).__name__
    return f"rank {rank}: {text}"


def _not_plain(file: str, error: pickle.UnpicklingError) -> Refused:
    """In place of torch's message, which recommends to read the file without a limit."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return _refused(file, found[1]) if found else Refused(f"{file} is damaged: it holds no plain values")


def _refused(file: str, name: str) -> Refused:
    return Refused(f"{file} refers to {name}, which no checkpoint needs, and was not read further")


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
