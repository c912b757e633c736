"""A pair as chat messages, and messages as the text of a prompt.

Training and evaluation share this file, so a judge is evaluated with the prompts of its training.
"""

from ralign.engine.data.pairs import Pair
from ralign.engine.data.prompts import NEEDED, render
from ralign.engine.runtime.errors import UserError

Messages = tuple[tuple[str, str], ...]  # (role, content), oldest first, as in a `Request`

_PLACEHOLDERS = tuple(f"{{{name}}}" for name in ("context", *NEEDED))
_BLANK_LINE = "\n\n"

# `as_text` with chat=False as a chat template, for servers of models that were trained on plain text.
PLAIN_CHAT = (
    "{% for message in messages %}{{ '' if loop.first else '\\n\\n' }}{{ message['content'] }}{% endfor %}"
)


def pair_messages(template: str, pair: Pair) -> Messages:
    """A system message with the paragraphs before the first placeholder, and a user message with the others.

    A template that starts with a placeholder's paragraph (compact) is one user message. The contents, joined by a
    blank line, equal `render(template, pair)`.
    """
    paragraphs = template.split(_BLANK_LINE)
    first = [any(name in paragraph for name in _PLACEHOLDERS) for paragraph in paragraphs].index(True)
    user = ("user", render(_BLANK_LINE.join(paragraphs[first:]), pair))
    return (("system", _BLANK_LINE.join(paragraphs[:first])), user) if first else (user,)


def as_text(messages: Messages, tokenizer, *, chat: bool) -> str:
    """The messages in the tokenizer's chat template with a generation prompt, or joined by blank lines (plain).

    The template's default decides whether the model thinks first.

    Raises:
        UserError: chat, and the tokenizer has no chat template.
    """
    if not chat:
        return _BLANK_LINE.join(content for _, content in messages)
    if not tokenizer.chat_template:
        raise UserError(
            f"data.chat=True: the tokenizer in {tokenizer.name_or_path!r} has no chat template"
            " (use data.chat=False for plain text)"
        )
    turns = [{"role": role, "content": content} for role, content in messages]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
