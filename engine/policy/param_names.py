"""A model's parameters in Hugging Face and in vLLM: names, and the shards that this rank holds of each tensor."""

import re
from dataclasses import dataclass

from ralign.engine.policy.families.family import EMBEDDING, FINAL_NORM, HEAD, VALUE_HEAD, Family, Parameter
from ralign.engine.policy.sizes import Sizes


@dataclass(frozen=True)
class ParamMap:
    """A Megatron parameter in the other two libraries.

    Attributes:
        hf: Hugging Face tensors whose rank shards, stacked along dim 0, make the local parameter.
        rows: of each of them in the whole model, vocabulary padding included.
        vllm: the parameter's name in vLLM's model.
        split_dim: the dimension that tensor parallelism splits, or None where every rank holds all of it.
        is_vocab: rows are vocabulary entries, of which a Hugging Face tensor has no padding.
        may_be_missing: zeros where a Hugging Face folder has no such tensor.
    """

    hf: tuple[str, ...]
    rows: tuple[int, ...]
    vllm: str
    split_dim: int | None
    is_vocab: bool = False
    may_be_missing: bool = False

    def local_rows(self, tp_size: int) -> list[int]:
        """Rows of the local parameter that belong to each of its Hugging Face tensors."""
        return [rows // tp_size if self.split_dim == 0 else rows for rows in self.rows]


_TOP = {parameter.megatron: parameter for parameter in (EMBEDDING, FINAL_NORM, HEAD, VALUE_HEAD)}
_LAYER_NAME = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


def param_map(megatron_name: str, family: Family, sizes: Sizes, *, first_layer: int, tied: bool) -> ParamMap:
    """The map of a parameter of this pipeline stage.

    Args:
        megatron_name: the name in the stage's GPTModel, layers counted from 0 within the stage.
        sizes: of the whole model.
        first_layer: number of layers on earlier stages.
        tied: the output layer shares the embedding (its copy on the last stage reads the embedding's name).
    """
    if megatron_name in _TOP:
        is_copy = tied and megatron_name == HEAD.megatron
        return _resolved(EMBEDDING if is_copy else _TOP[megatron_name], sizes)
    match = _LAYER_NAME.fullmatch(megatron_name)
    found = [parameter for parameter in family.layer if match and parameter.megatron == match[2]]
    assert match and found, (
        f"family {family.model_type} does not describe Megatron's parameter {megatron_name}"
    )
    return _resolved(found[0], sizes, f"model.layers.{int(match[1]) + first_layer}.")


def _resolved(parameter: Parameter, sizes: Sizes, prefix: str = "") -> ParamMap:
    return ParamMap(
        hf=tuple(prefix + name for name in parameter.hf),
        rows=tuple(sizes[axis] for axis in parameter.hf.values()),
        vllm=prefix + parameter.vllm,
        split_dim=parameter.split_dim,
        is_vocab="vocab" in parameter.hf.values(),
        may_be_missing=parameter.may_be_missing,
    )
