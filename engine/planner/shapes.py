"""The sizes of a model that memory and time depend on, and how many parameters a rank holds.

What a decoder layer consists of comes from the model's family (`policy.families`). Nothing here imports torch:
`ralign-plan` and the refusal of a start answer at once.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    if model.hf_path is not None:
        return shape_of_folder(model.hf_path, "model.hf_path")
    sizes: Any = {
        ours: _size(f"model.{ours}", getattr(model, ours)) for ours in _SIZES if ours != "vocab_size"
    }
    return Shape(
        family=family.model_type,
        vocab_size=vocab_size,
        rope_theta=model.rope_theta,
        tie_embeddings=model.tie_embeddings,
        **sizes,
    )


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


_SIZES = {  # our name -> Hugging Face's
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
}
_MOST, _MOST_LAYERS = (
    10**9,
    100_000,
)  # far more than any model has; products of the sizes are still finite floats
_MAX_THETA = 1e30
_MAX_SHOWN_CHARS = 80


def read_shape(folder: str | Path) -> Shape:
    """The shape of the model in a Hugging Face folder.

    Raises:
        UserError: config.json cannot be read; as `shape_of_hf`.
    """
    path = Path(folder) / "config.json"
    config = read_json_object(path)
    try:
        return shape_of_hf(config, Path(folder).name)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def shape_of_hf(config: dict, name: str = "") -> Shape:
    """The shape that a Hugging Face config.json describes.

    Raises:
        UserError: a size is missing or is none; the family, or a feature of the model, is not supported.
    """
    family = config.get("model_type")
    family_of(family if isinstance(family, str) else repr(family)).check(config)
    known = {ours: theirs for ours, theirs in _SIZES.items() if ours != "head_dim"}
    sizes: Any = {ours: _size(theirs, config.get(theirs)) for ours, theirs in known.items()}
    rope = config.get("rope_parameters") or {}
    theta = config.get("rope_theta") or (rope.get("rope_theta", 1e4) if isinstance(rope, dict) else rope)
    is_theta = isinstance(theta, int | float) and not isinstance(theta, bool) and 0 < theta < _MAX_THETA
    _require(is_theta, "rope_theta", "a positive number", theta)
    tied = config.get("tie_word_embeddings") or False
    _require(isinstance(tied, bool), "tie_word_embeddings", "true or false", tied)
    return Shape(
        name=name,
        family=config["model_type"],
        head_dim=_size("head_dim", head_size(config)),
        rope_theta=theta,
        tie_embeddings=tied,
        **sizes,
    )


def _size(name: str, value: Any) -> int:
    most = _MOST_LAYERS if name.endswith("layers") else _MOST
    is_size = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
    _require(is_size, name, f"a whole number from 1 to {most:,}", value)
    return value


def _require(condition: bool, name: str, what: str, value: Any) -> None:
    if not condition:
        got = "nothing" if value is None else repr(value)[:_MAX_SHOWN_CHARS]
        raise UserError(f"{name} must be {what}, got {got}")
