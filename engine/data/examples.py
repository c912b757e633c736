"""Examples of a judge's task: pairs with tokenized prompts, and answers encoded and decoded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ralign.engine.data.chat import check_plain_template, encode_messages, encode_text, pair_messages
from ralign.engine.data.pairs import Pair
from ralign.engine.data.verdicts import THINKING
from ralign.engine.runtime.errors import UserError


@dataclass(kw_only=True, slots=True, frozen=True)
class Example:
    """A pair and the token ids of the judge's prompt for it."""

    pair: Pair
    prompt_ids: np.ndarray  # [L] int64
    opens_thinking: bool = False  # as of `Prompt`


def encode(
    pairs: Sequence[Pair], tokenizer, template: str, max_prompt_tokens: int, *, chat: bool = False
) -> tuple[list[Example], int]:
    """Examples of the pairs whose prompt fits, and the number of the others.

    chat: use the tokenizer's chat template. The token ids equal those of `ralign-eval run` on a folder with this
        tokenizer.

    Raises:
        UserError: no prompt fits, there is no chat template, or a plain template has control strings.
    """
    if not chat:
        check_plain_template(template, tokenizer)
    prompts = encode_messages([pair_messages(template, pair) for pair in pairs], tokenizer, chat=chat)
    examples = [
        Example(pair=pair, prompt_ids=prompt.ids, opens_thinking=prompt.opens_thinking)
        for pair, prompt in zip(pairs, prompts, strict=True)
        if len(prompt.ids) <= max_prompt_tokens
    ]
    if not examples:
        shortest = min((len(prompt.ids) for prompt in prompts), default=0)
        raise UserError(
            f"data.max_prompt_tokens={max_prompt_tokens} is too small for all of {len(pairs)} pairs: "
            f"the shortest prompt has {shortest} tokens"
        )
    return examples, len(pairs) - len(examples)


def encode_answer(text: str, tokenizer) -> np.ndarray:
    """Token ids of a target judgment, with the end token: [L] int64."""
    return np.append(encode_text(text, tokenizer), tokenizer.eos_token_id)


def decode_answer(response: np.ndarray, tokenizer, *, opens_thinking: bool = False) -> str:
    """The text of a sampled response, without the end token.

    opens_thinking: its prompt ended inside a thinking block; then the text starts with the tag that the prompt had, so
        that thinking without an end is not taken for the answer.
    """
    text = tokenizer.decode(response.tolist(), skip_special_tokens=True)
    return THINKING + text if opens_thinking else text
