"""Finds mentions of response A or B in a judgment, and ambiguous ones.

Names have forms such as Response A, **Output** (b), Assistants 1 and 2, the second answer, "A", B's, a bare B,
\\boxed{A}. A word that only looks like a name is ignored: the article in "A better answer", vitamin B, Sagittarius A,
A-level. An ambiguous word is a doubt: it does not count as a name and is returned separately.

Nouns such as option and solution also occur in tasks ("Response A picks option B"). They form names only in a text
that has no plainer noun for the responses.

Whether a place is a name does not depend on its letter. Whether it is a doubt may, since only A is an article.
"""

import re
from bisect import bisect_left
from dataclasses import dataclass

_PLAIN = "response|assistant|output|answer|candidate|completion|reply|model|chatbot|bot"
_LOOSE = (
    "option|choice|solution|version|variant|alternative|submission|draft|essay|story|poem|summary|translation"
    "|explanation|text|email|rewrite|implementation|proof|passage|agent|system|ai|llm|entry|attempt"
)
_NOUN = f"(?P<noun>(?i:{_PLAIN}|{_LOOSE}))(?i:e?s)?"
_COUNTED = f"(?P<counted>(?i:{_PLAIN.replace('answer|', '')}|{_LOOSE})|Answer)(?i:e?s)?"  # "answer 2" may be a result

_SPACE = r"(?:[*_\"”'’`]{0,3}[ \t\xa0]{0,2}|[_-])"
_NO_WORD = r"(?![A-Za-z0-9\xc0-\u024f]|[-_]\w)"
_NO_NUMBER = r"(?![\w%-]|[.,:/]\d)"
_JOIN = r"(?:\s*(?:,|/|&|>|<|=)\s*|\s+(?:and|or|vs\.?|versus|over|than)\s+)"
_OPEN = r"[*_(\[#]{0,4}"
_OWN = (
    r"(?<!\ba )(?<!\b[Aa]n )(?<!\bits )(?<!\bhis )(?<!\bher )(?<!\btheir )(?<!['’]s )"  # "its first answer"
)
_NAMED = re.compile(
    r"(?=[\w\[])(?:boxed\{(?:\\text(?:bf)?\{)?(?P<boxed>[AB])\}"
    r"|\[\[(?P<bracketed>[AB])\]\]"
    rf"|\b{_NOUN}{_SPACE}(?:[\"“'‘`](?P<quoted>[AB])[\"”'’`]|{_OPEN}(?P<letter>[AB]){_NO_WORD})"
    rf"(?:[*_)\]]{{0,4}}{_JOIN}{_OPEN}(?P<letter2>[AB]){_NO_WORD})?"
    rf"|\b(?P<lettered>(?i:{_PLAIN}|{_LOOSE}))(?i:e?s)?{_SPACE}[*_]{{0,3}}\((?P<small>[ab])\)"
    rf"(?:{_JOIN}\((?P<small2>[ab])\))?"
    rf"|\b{_COUNTED}(?=[\s_#*-]){_SPACE}{_OPEN}"
    rf"(?P<digit>[12])(?:{_JOIN}#?(?P<digit2>[12]){_NO_NUMBER}|{_NO_NUMBER})"
    rf"|\b(?P<spelled>(?i:{_PLAIN}))\s(?P<word>One|Two)\b"
    rf"|{_OWN}\b(?P<ordinal>[Ff]irst|[Ss]econd|FIRST|SECOND|1st|2nd)"
    r"(?:\s+(?:and|or|&)\s+(?:the\s+)?(?P<ordinal2>first|second|1st|2nd))?"
    rf"[*_\"”]{{0,3}}\s+(?P<ranked>(?i:{_PLAIN}|{_LOOSE}))s?\b)"
)
_NOUN_GROUPS = frozenset(("noun", "lettered", "counted", "spelled", "ranked"))
_PEOPLE = frozenset(
    "response assistant candidate chatbot bot".split()
)  # beside Response A, "output 1" is a result
_LETTER_GROUPS = frozenset(("quoted", "letter", "letter2", "small", "small2"))
_NUMBER_GROUPS = frozenset(("digit", "digit2", "word"))
_IS_PLAIN = re.compile(f"(?i:{_PLAIN})")
_MORE_OPTIONS = re.compile(r"\b(?i:option|choice|answer)s?\W{1,3}[C-F]\b")

# \Z, since $ also matches before a final line break.
_LETTER = re.compile(r"(?<![A-Za-z0-9\xc0-\u024f])[AB](?![A-Za-z0-9\xc0-\u024f])")
_PART_BEFORE = re.compile(r"(?:[A-Za-z0-9)][-_.&@/^+=(|]|[\\$@#^&])\Z")  # U.S.A, C-A, f(A), $A
_PART_AFTER = re.compile(r"[-_.&@/|][A-Za-z0-9]|[+#^$=&]")  # A-level, B.C., A+
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_POSSESSIVE = re.compile(r"[*_`\"”)]{0,3}['’]s\b")
_WORD_BEFORE = re.compile(r"([^\W\d][\w'’-]*)[ \t\xa0]+\Z")
_WORD_AFTER = re.compile(r"[ \t\xa0]+([A-Za-z]+)(-\w)?(?:[ \t]+([a-z]+))?")
_COLON_BEFORE = re.compile(r"(\w+)[*_ \t]*:[*_ \t]*\Z")
_IN_A_LIST = re.compile(r"(?:^|\n)[\s*_>#(-]*\Z")  # "A. Accuracy", "(B) Style": may be an enumeration
_LABEL_AFTER = re.compile(r"[*_]{0,3}[.)]")
_MATHS = re.compile(r"\s*(?:[=+×∩∪→⇒≤≥∈⊂≠]|[<>]=|[-=]>)")
_MATHS_BEFORE = re.compile(r"(?:[=+×∩∪→⇒≤≥∈⊂≠]|[-=]>)\s*\Z")
_FROM_TO = re.compile(r"\b[Ff]rom [AB] to \Z")

_BEFORE = frozenset(
    "and or than that to over of by for with while whereas but because as is are between both either neither nor "
    "from if in so since although though unlike like prefer prefers preferred choose chooses chosen chose pick picks "
    "picked favor favors favour favours favored favoured vs versus against on when where why how what which who does "
    "did makes made making rank ranks rate rates rated therefore thus hence however overall meanwhile conversely was "
    "beats beat outperforms outperform surpasses exceeds edges bests think believe feel find found say conclude argue "
    "judge consider select selected give gives gave giving award leaving leaves puts places then also here clearly "
    "finally ultimately only not yes no about around before after until despite behind below above under".split()
)
_VERBS = frozenset(
    "is was has had does did can could should would will may might must also only never always just alone "
    "correctly incorrectly accurately fully directly fails failed gave made wrote got did said lacks misses because "
    "and or but over wins won not clearly simply actually merely at in on while whereas than vs versus beats does "
    "though which who that".split()
)
_DETERMINERS = frozenset(
    "a an the its their his her more less no not only both all this that these those some any every each to for "
    "it them with as by in on at from several two three".split()
)
_NO_VERBS = re.compile(
    r"(?:ss|us|is|as|os|ics|series|means|species|news|lens|sales|sports|systems|times|pros)$"
)
_ADJECTIVES = frozenset(
    "detailed balanced limited nuanced mixed advanced structured focused personalized needed related repeated "
    "so-called expected revised improved proposed supposed combined tailored dedicated educated used red".split()
)
_THINGS = frozenset(
    "vitamin vitamins hepatitis influenza plan letter letters grade grades category type types group section part "
    "step phase figure appendix exhibit sagittarius point points set sets matrix vector variable variables node class "
    "column row note chord string player person company city train team product event straight blood".split()
)
_AFTER_THINGS = frozenset(
    "major minor flat sharp cell cells vitamin vitamins movie movies level levels student students grade grades "
    "test tests testing search algorithm roll".split()
)
_VERDICTS = frozenset(
    "verdict winner better best choice preference preferred answer decision judgment judgement conclusion".split()
)

_DOUBTS = re.compile(
    r"\b[Tt]he (?:first|second)(?=['’]s\b| one\b|\s+(?:is|was|has|does|gives|fails|provides|offers|also|only)\b)"
    rf"|\b(?:first|second),?\s+(?!and\b|of\b)[a-z-]+\s+(?i:{_PLAIN})\b(?!\s+\(?[AB12a])"
    rf"|\b(?i:left|left-hand|right-hand|top|bottom|upper|lower)\s+(?i:{_PLAIN})\b"
    rf"|\b(?i:{_PLAIN})\s[ab](?=['’]s\b|[.,;:)]|\s+(?:is|was|has|does|gives|and|fails|provides|offers)\b)"
    rf"|\b(?i:response|assistant|answer|model)\s(?:one|two)(?=['’]s\b|[.,;:)]|\s+(?:is|was|has|does)\b)"
    r"|(?<![\w#&])#[12]\b|\bR[12AB]\b"
    rf"|(?<![\w.])[12]['’]s(?=\s+(?i:{_PLAIN})\b)"
    rf"|(?<=[{_CJK}])[AB](?![A-Za-z0-9])|(?<![A-Za-z0-9])[AB](?=[{_CJK}])"
)
_ORDER = re.compile(  # refers to the order of mention, which renaming keeps if both were mentioned
    r"\b(?:[Ff]ormer|[Ll]atter)(?=['’]s\b|[.,;:)]|\s+(?:is|was|has|does|gives|also|only|fails|one|response|answer)\b)"
)
_SMALL = re.compile(r"(?<![\w(])\([ab]\)(?!\w)")


@dataclass(frozen=True, slots=True)
class Mention:
    """text[start:end] names a response, or may name one."""

    start: int
    end: int
    # Of a name: "verdict" in a box, "bare", or its noun ("response", "option"). Of a doubt: "doubt".
    kind: str


def find_names(text: str) -> tuple[list[Mention], list[Mention]]:
    """Names and doubts, each in order. A name spans exactly the word to exchange (A, b, 1, One, first)."""
    names, doubts = _with_nouns(text)
    seen = bytearray(len(text))
    for mention in (*names, *doubts):
        seen[mention.start : mention.end] = b"\1" * (mention.end - mention.start)
    for found in _LETTER.finditer(text):
        if not seen[found.start()]:
            is_name = _means_a_side(text, found.start())
            if is_name is not False:
                (names if is_name else doubts).append(_mention(found, "bare" if is_name else "doubt"))
                seen[found.start()] = 1
    names.sort(key=lambda name: name.start)
    vague = list(_DOUBTS.finditer(text))
    if any(text[name.start] in "ab" for name in names):
        vague += _SMALL.finditer(text)
    vague += [found for found in _ORDER.finditer(text) if not _both_were_named(text, names, found.start())]
    doubts += [_mention(found, "doubt") for found in vague if not any(seen[found.start() : found.end()])]
    return names, sorted(doubts, key=lambda doubt: doubt.start)


def speaks_of(text: str, kind: str) -> bool:
    """Whether a prompt or response has words with another meaning that look like names of this kind."""
    letter = r"(?<![\w-])B(?![\w-])"  # a lone B is a name; a lone A is mostly an article
    if kind == "bare":
        return re.search(letter, text) is not None
    noun = rf"\b(?i:{kind})s?[\s:_*\"'(#-]{{1,4}}(?:[AB12]|[ab](?=\)))(?![\w-])"
    own = f"{letter}|{noun}" if kind in ("option", "choice", "answer") else noun
    return re.search(own, text) is not None


def _mention(found: re.Match[str], kind: str, group: str | int = 0) -> Mention:
    return Mention(found.start(group), found.end(group), kind)


def _with_nouns(text: str) -> tuple[list[Mention], list[Mention]]:
    """Names with a noun and boxed verdicts; and doubts, whose noun or number is ambiguous."""
    mentions: list[tuple[Mention, str]] = []  # and the group that matched
    for found in _NAMED.finditer(text):
        groups = {group: word for group, word in found.groupdict().items() if word is not None}
        nouns = [groups.pop(group).lower() for group in tuple(groups) if group in _NOUN_GROUPS]
        (kind,) = nouns or ["verdict"]
        mentions += [(_mention(found, kind, group), group) for group in groups]
    plain = [group for mention, group in mentions if _IS_PLAIN.fullmatch(mention.kind)]
    loose_are_names = not plain and _MORE_OPTIONS.search(text) is None
    has_letters = not _LETTER_GROUPS.isdisjoint(plain)
    names, doubts = [], []
    for mention, group in mentions:
        is_sure = mention.kind == "verdict" or (
            (loose_are_names or _IS_PLAIN.fullmatch(mention.kind) is not None)
            and not (has_letters and group in _NUMBER_GROUPS and mention.kind not in _PEOPLE)
        )
        (names if is_sure else doubts).append(mention)
    return names, doubts


def _both_were_named(text: str, names: list[Mention], end: int) -> bool:
    """Whether both responses are named in the 400 characters before `end`."""
    first, last = (bisect_left(names, place, key=lambda name: name.start) for place in (end - 400, end))
    near = [text[name.start : name.end].lower() for name in names[first:last]]
    sides = {"A" if word in ("a", "1", "one", "first", "1st") else "B" for word in near}
    return len(sides) == 2


def _means_a_side(text: str, place: int) -> bool | None:
    """Whether the lone A or B at `place` means a response; None if that is ambiguous."""
    is_a = text[place] == "A"
    before, after = text[max(0, place - 60) : place], text[place + 1 : place + 61]
    if re.match(r"/[AB]\b", after) or re.search(r"\b[AB]/\Z", before):
        return False if re.search(r"^(?:/[AB])?[ -]tests?\b|^(?:/[AB])?[ -]testing\b", after) else None
    if _PART_BEFORE.search(before) or _PART_AFTER.match(after):
        return False
    opened = before.rstrip("*_\"“‘'`([{")
    word, next_word = _WORD_BEFORE.search(opened), _WORD_AFTER.match(after.lstrip("*_\"”’'`)]}"))
    quotes = before[len(opened) :].strip("*_`([{") and not after.lstrip("*_").startswith(tuple("\"”’'"))
    # A quotation starts a new sentence ('such as "A good start"'). An A or B as the word before is ignored: as an
    # article A would count, and B would not.
    previous = word[1].lower() if word and not quotes and word[1] not in ("A", "B") else ""
    following = next_word[1] if next_word and not next_word[2] else ""
    if previous in _THINGS | {"a", "an"} or following in _AFTER_THINGS:
        return False
    if _POSSESSIVE.match(after):
        return True
    if opened[-1:].isalnum() or _MATHS.match(after) or _MATHS_BEFORE.search(before):
        return None
    if following[:1].isupper() and following != "I":  # "in A Tale of Two Cities"
        return False if is_a and following.lower() not in _VERBS else None
    if previous:
        return _after_a_word(previous, following, before, after)
    return _at_a_start(is_a, before if quotes else opened, after, following, next_word)


def _after_a_word(previous: str, following: str, before: str, after: str) -> bool | None:
    if previous in ("the", "this"):
        return True if re.fullmatch(f"(?:{_PLAIN}|{_LOOSE})s?", following) else None
    if previous == "from" and following == "to" or _FROM_TO.search(before):
        return None
    return True if previous in _BEFORE else None


def _at_a_start(
    is_a: bool, opened: str, after: str, following: str, next_word: re.Match[str] | None
) -> bool | None:
    """A letter without a word before it: at the start of a sentence, after a comma, in brackets."""
    if _IN_A_LIST.search(opened) and _LABEL_AFTER.match(after):
        return None
    if not following:
        titled = _COLON_BEFORE.search(opened)
        if next_word:  # "A hands-on guide"
            return False if is_a else None
        return None if titled and titled[1].lower() not in _VERDICTS else True
    if following in _VERBS or (following.endswith("s") and not _NO_VERBS.search(following)):
        return True
    if following.endswith("ed") and following not in _ADJECTIVES:
        return True if next_word and next_word[3] in _DETERMINERS else None
    starts = opened.rstrip()[-1:] in ("", *".!?:;*->#|)\"“”‘'`")
    return False if is_a and starts else None
