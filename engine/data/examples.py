"""Examples of a judge's task: pairs with tokenized prompts, and answers encoded and decoded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ralign.engine.data.chat import as_text, pair_messages
from ralign.engine.data.pairs import Pair
from ralign.engine.runtime.errors import UserError


@dataclass(kw_only=True, slots=True, frozen=True)
class Example:
    """A pair and the token ids of the judge's prompt for it."""

    pair: Pair
    prompt_ids: np.ndarray  # [L] int64


def encode(
    pairs: Sequence[Pair], tokenizer, template: str, max_prompt_tokens: int, *, chat: bool = False
) -> tuple[list[Example], int]:
    """Examples of the pairs whose prompt fits, and the number of the others.

    chat: use the tokenizer's chat template. The token ids equal those of `ralign-eval run` on a folder with this
        tokenizer.

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
            f"data.max_prompt_tokens={max_prompt_tokens} is too small for all of {len(pairs)} pairs: "
            f"the shortest prompt has {shortest} tokens"
        )
    return examples, len(pairs) - len(examples)


def encode_answer(text: str, tokenizer) -> np.ndarray:
    """Token ids of a target judgment, with the end token: [L] int64."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return np.asarray([*ids, tokenizer.eos_token_id], dtype=np.int64)


def decode_answers(responses: Sequence[np.ndarray], tokenizer) -> list[str]:
    """Texts of sampled responses, without the end token."""
    return tokenizer.batch_decode([ids.tolist() for ids in responses], skip_special_tokens=True)
