"""How a model is asked: a pair as messages, and messages as the text that it reads.

Training and evaluation share this, so that a judge is measured in the form that it was trained in.
"""

from ralign.engine.data.pairs import Pair
from ralign.engine.data.prompts import NEEDED, render
from ralign.engine.runtime.errors import UserError

Messages = tuple[tuple[str, str], ...]  # (role, content), oldest first, as in a `Request`

_PLACEHOLDERS = tuple(f"{{{name}}}" for name in ("context", *NEEDED))
_BLANK_LINE = "\n\n"

# The chat template of models that were trained on plain text (`as_text` with chat=False), for servers that need one.
PLAIN_CHAT = (
    "{% for message in messages %}{{ '' if loop.first else '\\n\\n' }}{{ message['content'] }}{% endfor %}"
)


def pair_messages(template: str, pair: Pair) -> Messages:
    """A system message, the paragraphs before the first one with a placeholder, and a user message, the others.

    A template without such paragraphs (compact) is one user message. The contents with a blank line between them
    are `render(template, pair)`.
    """
    paragraphs = template.split(_BLANK_LINE)
    asked = [any(name in paragraph for name in _PLACEHOLDERS) for paragraph in paragraphs].index(True)
    user = ("user", render(_BLANK_LINE.join(paragraphs[asked:]), pair))
    return (("system", _BLANK_LINE.join(paragraphs[:asked])), user) if asked else (user,)


def as_text(messages: Messages, tokenizer, *, chat: bool) -> str:
    """The messages in the tokenizer's chat template, the answer's turn begun; plain: a blank line between contents.

    Whether the model thinks first is left to the template's default.

    Raises:
        UserError: chat, and the tokenizer has no chat template.
    """
    if not chat:
        return _BLANK_LINE.join(content for _, content in messages)
    if not tokenizer.chat_template:
        raise UserError(
            f"data.chat=True: the tokenizer in {tokenizer.name_or_path!r} has no chat template"
            " (data.chat=False asks in plain text)"
        )
    turns = [{"role": role, "content": content} for role, content in messages]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
