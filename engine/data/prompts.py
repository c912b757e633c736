"""Prompt templates for the judge: they turn a pair into the prompt of a GenRM.

A template is text with the placeholders ``{prompt}``, ``{response_A}`` and ``{response_B}`` (all required) and
``{context}`` (the dialogue before the prompt; optional). Other braces are kept.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from ralign.engine.data.pairs import Pair, context_turns, prompt_text
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import check_input

NEEDED = ("prompt", "response_A", "response_B")
_PLACEHOLDER = re.compile(r"\{(context|prompt|response_A|response_B)\}")
_THINKING_TAG = re.compile(r"<(?=/?think>)", re.IGNORECASE)

COMPACT = "Note:\n{prompt}\nA:\n{response_A}\nB:\n{response_B}\nJudgment:\n"

FULL = r"""You compare two responses to the same user message and decide which one serves the user better.

Weigh these criteria in this order; an earlier one outweighs all later ones:
1. Facts: statements, reasoning, code and figures are true and sound.
2. Task: the instructions are followed and what was asked for is done, constraints included.
3. Coverage: what is said bears on the request, and nothing needed is left out.
4. Writing: it is clear, well ordered and no longer than it has to be.
5. Safety: it does no harm and helps with none.
6. Originality: only where the request leaves the form open.

Only differences that matter to the user decide. Length, layout, headings, bullet points, a confident or
friendly tone, and the order in which the responses are shown earn nothing in themselves. Claim no fault that
you cannot point to in the text. There are no ties.

Write your judgment in this order:
- Requirements: what the message asks for, explicitly and by implication.
- Response A: its strengths and its weaknesses, each with the passage that shows it.
- Response B: likewise.
- Decisive differences: the one to three differences that settle it, and why.
- Verdict: end with \boxed{A} or \boxed{B}, once, and write nothing after it.

[Dialogue before the message]
{context}

[User message]
{prompt}

[Response A]
{response_A}

[Response B]
{response_B}

[Judgment]
"""

TEMPLATES = {"compact": COMPACT, "full": FULL}
NO_CONTEXT = "(none)"


def load_template(name_or_path: str) -> str:
    """The text of the built-in template of this name, or of the file at this path. Raises as `read_template`."""
    return read_template(name_or_path, TEMPLATES, _PLACEHOLDER, NEEDED)


def read_template(
    name_or_path: str,
    builtin: Mapping[str, str],
    placeholder: re.Pattern[str],
    needed: Sequence[str],
    what: str = "template",
) -> str:
    """The text of a built-in template or of a file.

    Raises:
        UserError: neither exists, or the file lacks a placeholder of `needed`.
    """
    if name_or_path in builtin:
        return builtin[name_or_path]
    if Path(name_or_path).exists():
        check_input(name_or_path)  # a device may never end
    try:
        template = Path(name_or_path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = ", ".join(builtin)
        raise UserError(f"the {what} {name_or_path!r} is neither {names} nor a readable text file") from error
    present = set(placeholder.findall(template))
    if missing := [f"{{{name}}}" for name in needed if name not in present]:
        raise UserError(f"the {what} {name_or_path} lacks the placeholder {', '.join(missing)}")
    return template


def shown_texts(pair: Pair) -> dict[str, str]:
    """Placeholder -> text of the pair: the dialogue before the prompt, the prompt and both responses."""
    turns = [f"{turn['role']}: {turn['content']}" for turn in context_turns(pair)]
    return {
        "context": "\n\n".join(turns) or NO_CONTEXT,
        "prompt": prompt_text(pair),
        "response_A": pair.response_A,
        "response_B": pair.response_B,
    }


def render(template: str, pair: Pair) -> str:
    """The prompt for `pair`. Braces in the pair's texts are kept; `safe_texts` has what is not."""
    return fill(template, safe_texts(template, pair))


def fill(template: str, texts: Mapping[str, str]) -> str:
    """The template, or a part of it, with texts in place of its placeholders."""
    return _PLACEHOLDER.sub(lambda found: texts[found.group(1)], template)


def safe_texts(template: str, pair: Pair) -> dict[str, str]:
    """`shown_texts` that cannot pass for a part of the prompt, or of an answer's form.

    A line that equals one of the template's headings is quoted with ``> ``. The ``<`` of a thinking tag is escaped as
    ``&lt;``, since a judge that quotes the tag would end the visible part of its judgment there.
    """
    headings = headings_of(template, _PLACEHOLDER)
    texts = shown_texts(pair).items()
    return {name: quote_headings(_THINKING_TAG.sub("&lt;", text), headings) for name, text in texts}


@lru_cache(maxsize=16)
def headings_of(template: str, placeholder: re.Pattern[str]) -> frozenset[str]:
    """Lines without placeholders, from the last one before the first placeholder to the end of the template."""
    lines = template.split("\n")
    first = next(number for number, line in enumerate(lines) if placeholder.search(line))
    before = [line for line in lines[:first] if line.strip()][-1:]
    after = [line for line in lines[first:] if not placeholder.search(line)]
    return frozenset(line.strip().casefold() for line in before + after if line.strip())


def quote_headings(text: str, headings: frozenset[str]) -> str:
    """The text with ``> `` before every line that equals a heading."""
    lines = text.split("\n")
    return "\n".join(f"> {line}" if line.strip().casefold() in headings else line for line in lines)
