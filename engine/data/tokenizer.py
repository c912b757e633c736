"""A model folder's tokenizer with the tokens that end an answer, and a small byte-level BPE tokenizer of our own."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import read_json_object

EOS_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"
NUM_BYTES = 256

# Like GPT-2's: a word includes the space before it. Each digit is a piece, and so is the opening of a verdict.
# No piece crosses a line break, so only a word at the start of a line has no space.
_PIECES = r" ?\\boxed\{| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}\\]+|\\|[^\S\n]+(?!\S)|\s"


def load_tokenizer(folder: str | Path) -> tuple[Any, list[int]]:
    """The tokenizer in a model's folder, and every id that ends an answer, the tokenizer's own first.

    The others are those of generation_config.json, or of config.json without one, at which vLLM stops, too. One that
    the tokenizer has as an added token becomes special: it is no part of an answer's text, and no text is encoded
    with it.

    Raises:
        UserError: no id ends an answer, or a configuration has something else in its place.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = list(dict.fromkeys([*own, *_end_ids(Path(folder), len(tokenizer))]))
    if not ids:
        raise UserError(f"{folder}: no token ends an answer: the tokenizer needs an eos_token")
    if not own:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ids[0])
    added = tokenizer.added_tokens_decoder
    for token in (added[id] for id in ids if id in added and not added[id].special):
        token.special = True
        tokenizer.add_tokens([token], special_tokens=True)
    return tokenizer, ids


def _end_ids(folder: Path, num_tokens: int) -> list[int]:
    """eos_token_id of the folder's generation_config.json, else of its config.json."""
    path = folder / "generation_config.json"
    if not path.exists():
        path = folder / "config.json"
    found = read_json_object(path).get("eos_token_id") if path.exists() else None
    ids = found if isinstance(found, list) else [] if found is None else [found]
    for id in ids:
        if not isinstance(id, int) or isinstance(id, bool) or id < 0:
            raise UserError(f"{path}: eos_token_id must be a token id or a list of them, got {found!r}")
    return [id for id in ids if id < num_tokens]  # larger ones are padding of the embedding


def build_tokenizer(texts: Iterable[str], folder: str | Path, vocab_size: int):
    """Trains a tokenizer on `texts`, writes it to `folder` and returns it (`PreTrainedTokenizerFast`).

    All 256 bytes are in the vocabulary, so every text can be encoded and decoded without loss. Texts with few
    different words give fewer than `vocab_size` entries; the actual size is `len(tokenizer)`. Ids 0 and 1 are the
    end-of-text and padding tokens. The same texts give the same files.

    Raises:
        UserError: `vocab_size` is less than the number of bytes and special tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < NUM_BYTES + 2:
        raise UserError(
            f"vocab_size must be at least {NUM_BYTES + 2} (bytes, end, padding), got {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN, PAD_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(str(folder))
    return fast
