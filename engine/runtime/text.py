"""Text of files and models, made safe for a terminal."""


def printable(text: str) -> str:
    """`text` with every character that is not printable as its escape, such as `\\x1b`; the result is one line.

    These are the characters that a terminal obeys (escape sequences), reorders text by, or cannot encode (lone
    surrogates). A space is printable.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
