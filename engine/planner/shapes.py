"""The sizes of a model that memory and time depend on, and how many parameters a rank holds.

What a decoder layer consists of comes from the model's family (`policy.families`). Nothing here imports torch:
`ralign-plan` and the refusal of a start answer at once.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ralign.engine.config.registry import FAMILIES
from ralign.engine.policy.families.family import EMBEDDING, FINAL_NORM, HEAD, VALUE_HEAD, family_of
from ralign.engine.policy.sizes import Sizes, head_size, padded_vocab_size, sizes_of
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import read_json_object

if TYPE_CHECKING:
    from ralign.engine.config.run import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A dense decoder; sizes count items. `family` is Hugging Face's model_type."""

    family: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    rope_theta: float = 1e6
    tie_embeddings: bool = False
    max_position_embeddings: int = 40960
    is_critic: bool = False  # a value head in place of the LM head
    name: str = field(default="", compare=False)

    @property
    def padded_vocab_size(self) -> int:
        return padded_vocab_size(self.vocab_size)

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model, the padding of the vocabulary included, a tied head counted once."""
        return sum(sum(part) for part in self.parts(tensor=1, pipeline=1, stage=0))

    def parts(self, *, tensor: int, pipeline: int, stage: int) -> tuple[list[int], list[int], list[int]]:
        """Sizes of the parameters that one rank of a pipeline stage holds.

        Returns:
            (embedding, all layers' parameters, final norm and head), each in the model's order.
        """
        sizes = self._sizes()
        layers = family_of(self.family).layer_sizes(sizes, tensor) * (self.num_layers // pipeline)
        first, last = stage == 0, stage == pipeline - 1
        has_own_head = last and (not self.tie_embeddings or pipeline > 1)  # stages cannot share one tensor
        own_head = VALUE_HEAD if self.is_critic else HEAD
        top = [FINAL_NORM] * last + [own_head] * has_own_head
        return (
            [EMBEDDING.num_local(sizes, tensor)] * first,
            layers,
            [parameter.num_local(sizes, tensor) for parameter in top],
        )

    def as_critic(self) -> "Shape":
        """The same decoder with a value head."""
        return replace(self, is_critic=True, tie_embeddings=False)

    def _sizes(self) -> Sizes:
        return sizes_of(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            ffn_hidden_size=self.ffn_hidden_size,
            num_attention_heads=self.num_attention_heads,
            num_query_groups=self.num_query_groups,
            head_dim=self.head_dim,
        )


def _qwen3(name: str, layers: int, hidden: int, ffn: int, heads: int, *, tied: bool = False) -> Shape:
    return Shape(
        name=name,
        family="qwen3",
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        num_query_groups=8,
        head_dim=128,
        vocab_size=151936,
        tie_embeddings=tied,
    )


# From the published config.json files, so that a plan needs no download. A folder's own config.json wins.
PUBLISHED = {
    shape.name: shape
    for shape in (
        _qwen3("Qwen3-0.6B", 28, 1024, 3072, 16, tied=True),
        _qwen3("Qwen3-1.7B", 28, 2048, 6144, 16, tied=True),
        _qwen3("Qwen3-4B", 36, 2560, 9728, 32, tied=True),
        _qwen3("Qwen3-8B", 36, 4096, 12288, 32),
        _qwen3("Qwen3-14B", 40, 5120, 17408, 40),
        _qwen3("Qwen3-32B", 64, 5120, 25600, 64),
    )
}


def shape_of(model: "ModelConfig", vocab_size: int = 1024) -> Shape:
    """The shape of a run's model: from the folder's config.json, a published one of that name, or the settings.

    Args:
        vocab_size: of a fresh model, whose tokenizer may not be made yet.

    Raises:
        UserError: as `shape_of_folder`; an unknown model.family.
    """
    family = FAMILIES.load(model.family)  # before a folder is read that has a family from an import path
    if model.hf_path is None:
        return Shape(
            family=family.model_type,
            num_layers=model.num_layers,
            hidden_size=model.hidden_size,
            ffn_hidden_size=model.ffn_hidden_size,
            num_attention_heads=model.num_attention_heads,
            num_query_groups=model.num_query_groups,
            head_dim=model.head_dim,
            vocab_size=vocab_size,
            rope_theta=model.rope_theta,
            tie_embeddings=model.tie_embeddings,
            max_position_embeddings=model.max_position_embeddings,
        )
    return shape_of_folder(model.hf_path, "model.hf_path")


def shape_of_folder(folder: str, setting: str) -> Shape:
    """The shape of the model in a setting's folder, or of the published model of that name.

    Raises:
        UserError: the folder is not there and its name is not known; as `shape_of_hf`.
    """
    if (Path(folder) / "config.json").is_file():
        return read_shape(folder)
    name = Path(folder).name
    if name not in PUBLISHED:
        raise UserError(
            f"{setting}={folder}: no config.json there, and no published model of that name is "
            f"known ({', '.join(PUBLISHED)})"
        )
    return PUBLISHED[name]


_SIZES = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "head_dim", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip


def read_shape(folder: str | Path) -> Shape:
    """The shape of the model in a Hugging Face folder.

    Raises:
        UserError: config.json cannot be read, lacks a size, or has one that is none; as `shape_of_hf`.
    """
    path = Path(folder) / "config.json"
    config = read_json_object(path)
    try:
        shape = shape_of_hf(config, Path(folder).name)
    except KeyError as error:
        raise UserError(f"{path} has no {error.args[0]}") from error
    for name in _SIZES:
        size = getattr(shape, name)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UserError(f"{path}: {name} must be a whole number of at least 1, got {size!r}")
    return shape


def shape_of_hf(config: dict, name: str = "") -> Shape:
    """The shape that a Hugging Face config.json describes.

    Raises:
        KeyError: a size is missing.
        UserError: the family, or a feature of the model, is not supported.
    """
    family_of(config["model_type"]).check(config)
    rope = config.get("rope_parameters") or {}
    return Shape(
        name=name,
        family=config["model_type"],
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=config["num_attention_heads"],
        num_query_groups=config["num_key_value_heads"],
        head_dim=head_size(config),
        vocab_size=config["vocab_size"],
        rope_theta=config.get("rope_theta") or rope.get("rope_theta", 1e4),
        tie_embeddings=config.get("tie_word_embeddings", False),
        max_position_embeddings=config["max_position_embeddings"],
    )
