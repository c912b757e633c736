from hypothesis import given
from hypothesis import strategies as st
from ralign.engine.runtime.text import printable


@given(st.text(st.characters()))
def test_nothing_that_a_terminal_obeys_or_cannot_encode_is_left(text):
    shown = printable(text)
    assert shown.isprintable() and len(shown.splitlines()) <= 1
    shown.encode("utf-8")
    assert printable(shown) == shown


def test_escapes_are_named_and_other_text_is_as_it_was():
    hostile = "\x1b[31m \x1b]0;title\x07 \x9b31m \r\n\t \u202egnp \ud800 \x7f"
    assert printable(hostile) == (r"\x1b[31m \x1b]0;title\x07 \x9b31m \r\n\t \u202egnp \ud800 \x7f")
    assert printable("naïve – 判断 [a] \\x1b 🙂") == "naïve – 判断 [a] \\x1b 🙂"
