"""Pairs as a judge is asked about them: prompts rendered and tokenized, answers decoded and read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ralign.engine.data.chat import as_text, pair_messages
from ralign.engine.data.pairs import Pair
from ralign.engine.runtime.errors import UserError


@dataclass(kw_only=True, slots=True, frozen=True)
class Example:
    """A pair and the token ids of the prompt that asks to judge it."""

    pair: Pair
    prompt_ids: np.ndarray  # [L] int64


def encode(
    pairs: Sequence[Pair], tokenizer, template: str, max_prompt_tokens: int, *, chat: bool = False
) -> tuple[list[Example], int]:
    """Examples of the pairs whose prompt fits, and the number that did not.

    chat: in the tokenizer's chat template, the token ids that `ralign-eval run` asks a folder of this tokenizer with.

    Raises:
        UserError: no prompt fits, or there is no chat template.
    """
    texts = [as_text(pair_messages(template, pair), tokenizer, chat=chat) for pair in pairs]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    examples = [
        Example(pair=pair, prompt_ids=np.asarray(prompt, dtype=np.int64))
        for pair, prompt in zip(pairs, ids, strict=True)
        if len(prompt) <= max_prompt_tokens
    ]
    if not examples:
        shortest = min(map(len, ids), default=0)
        raise UserError(
            f"data.max_prompt_tokens={max_prompt_tokens} leaves none of {len(pairs)} pairs: "
            f"the shortest prompt has {shortest} tokens"
        )
    return examples, len(pairs) - len(examples)


def encode_answer(text: str, tokenizer) -> np.ndarray:
    """Token ids of a judgment to learn, with the end token: [L] int64."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return np.asarray([*ids, tokenizer.eos_token_id], dtype=np.int64)


def decode_answers(responses: Sequence[np.ndarray], tokenizer) -> list[str]:
    """Texts of sampled responses, without the end token."""
    return tokenizer.batch_decode([ids.tolist() for ids in responses], skip_special_tokens=True)
