"""A small byte-level BPE tokenizer, saved in the form that transformers and vLLM load."""

from collections.abc import Iterable
from pathlib import Path

from ralign.engine.runtime.errors import UserError

EOS_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"
NUM_BYTES = 256

# Like GPT-2's: a word includes the space before it. Each digit is a piece, and so is the opening of a verdict.
# No piece crosses a line break, so only a word at the start of a line has no space.
_PIECES = r" ?\\boxed\{| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}\\]+|\\|[^\S\n]+(?!\S)|\s"


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
