"""What a rewriting of a response's surface must not touch, and the sentences and Markdown marks of the rest.

Code, tables, maths, links and HTML are protected: `Masked` replaces each by one token, and puts it back. Marks are
bullets, headings, bold and italics. Numbers of a list are content, since other text refers to them.
"""

import re
from collections.abc import Callable

_OPEN, _CLOSE = "\ue000", "\ue001"  # private-use characters around the number of a protected part
_TOKEN = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
_PROTECTED = re.compile(
    r"""
      ^[ \t]*(?P<fence>`{3,}|~{3,}).*?(?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)  # fenced code, closed or cut off
    | \$\$.*?\$\$ | \\\[.*?\\\] | \\begin\{(?P<env>[^}\n]*)\}.*?\\end\{(?P=env)\}  # maths on lines of its own
    | ^[^\n]*\|[^\n]*$  # a row of a table
    | ^(?:[ ]{4}|\t)(?![ \t]*[-*•][ \t])[^\n]*$  # indented code
    | `[^`\n]+` | !?\[[^\]\n]*\]\([^)\n]*\) | https?://\S*[^\s.,;:!?)'"] | <[^>\n]+>
    | \\\(.*?\\\) | \$[^\s$](?:[^$\n]*[^\s$])?\$
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
_UNCLEAR = re.compile(r"\$\$|\\[\[\]()]|\\(?:begin|end)\b|```|~~~")  # half of a protected part
_BARE_CODE = re.compile(
    r"^[ \t]*(?:def |class |import |from \S+ import |return\b|#include|public |private |(?:for|if|while) ?\()"
    r"|[;{}][ \t]*$",
    re.MULTILINE,
)
_MARKS = (
    # A bullet or a heading goes with its indentation, which would make it code.
    re.compile(r"^[ \t]*[-*•][ \t]+(?=[^\n]*\w)()", re.MULTILINE),
    re.compile(r"^ {0,3}#{1,6}[ \t]+(?=\S)()", re.MULTILINE),
    re.compile(r"(?<![\w*])\*\*([^\s*](?:[^*\n]*[^\s*])?)\*\*(?![\w*])"),  # bold
    re.compile(r"(?<![\w*])\*([^\s*](?:[^*\n]*[^\s*])?)\*(?![\w*])"),  # italics
)
_BREAK = re.compile(rf"[.!?][\"')]*([ \t]+)(?=[A-Z\"'({_OPEN}])")
_ABBREVIATION = re.compile(
    r"(?:^\s*\d+|(?:^|[\s(])(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|No|Fig|vs|etc|cf|al|approx|e\.g|i\.e))\.$"
)
_NO_BULLET = re.compile(r"[ \t]*(?:\d+[.)]|>)|\s{4}")
_WORD = re.compile(r"\w+")


class Masked:
    """A text whose protected parts are tokens."""

    def __init__(self, text: str):
        self.parts: list[str] = []
        self.text = _PROTECTED.sub(self._hide, text)
        has_tokens = _OPEN in text or _CLOSE in text
        self.is_clear = not (has_tokens or _UNCLEAR.search(self.text) or _BARE_CODE.search(self.text))
        """Whether all code and maths was found, so that the rest may be rewritten."""

    def _hide(self, found: re.Match[str]) -> str:
        self.parts.append(found.group())
        return f"{_OPEN}{len(self.parts) - 1}{_CLOSE}"

    def restored(self, text: str) -> str:
        """`text`, which has tokens of this object, with the protected parts."""
        return _TOKEN.sub(lambda found: self.parts[int(found.group(1))], text)


def rewritten(text: str, rewrite: Callable[[str], str | None]) -> str | None:
    """`text` with `rewrite` applied outside its protected parts; None if it may not be rewritten."""
    masked = Masked(text)
    new = rewrite(masked.text) if masked.is_clear else None
    return None if new is None else masked.restored(new)


def words(text: str) -> list[str]:
    """The words outside protected parts, in order."""
    return _WORD.findall(_TOKEN.sub(" ", Masked(text).text))


def split_sentences(text: str) -> tuple[list[str], list[str]]:
    """The sentences of one line, and the spaces between them."""
    sentences, spaces, start = [], [], 0
    for found in _BREAK.finditer(text):
        sentence = text[start : found.start(1)]
        if not _ABBREVIATION.search(sentence):
            sentences.append(sentence)
            spaces.append(found.group(1))
            start = found.end()
    return [*sentences, text[start:]], spaces


def num_marks(text: str) -> int:
    """Number of Markdown marks outside protected parts."""
    text, total = Masked(text).text, 0
    for pattern in _MARKS:
        text, count = pattern.subn(r"\1", text)
        total += count
    return total


def without_marks(text: str) -> str | None:
    """The text without Markdown marks; None if it may not be rewritten."""

    def strip(text: str) -> str:
        before = None
        while text != before:  # a mark may follow another
            before = text
            for pattern in _MARKS:
                text = pattern.sub(r"\1", text)
        return text

    return rewritten(text, strip)


def with_bullets(text: str) -> str | None:
    """The text, which has no marks, with its sentences as bullets, or in bold if it is one; None if neither fits."""

    def mark(text: str) -> str | None:
        lines = text.split("\n")
        if any(line[:1].islower() for line in lines[1:]):  # lines of a fixed width: a sentence has several
            return None
        sentences = [split_sentences(line)[0] if _takes_bullets(line) else [] for line in lines]
        if sum(map(len, sentences)) == 1:
            return "\n".join(
                f"**{line.strip()}**" if of_line else line
                for line, of_line in zip(lines, sentences, strict=True)
            )
        return "\n".join(
            "\n".join(f"- {sentence.strip()}" for sentence in of_line) if of_line else line
            for line, of_line in zip(lines, sentences, strict=True)
        )

    marked = rewritten(text, mark)
    return marked if marked is not None and num_marks(marked) else None


def _takes_bullets(line: str) -> bool:
    """Whether a line, masked, is prose: no number, quotation or lead-in, and not only a protected part."""
    has_words = _WORD.search(_TOKEN.sub(" ", line)) is not None
    return has_words and not _NO_BULLET.match(line) and "*" not in line and not line.rstrip().endswith(":")
