"""Word lists of the edits: what changes the meaning of a sentence, and what does not."""

NUMBERS = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "fifteen",
    "twenty", "thirty", "forty", "fifty", "sixty", "hundred", "thousand",
)  # fmt: skip
ORDINALS = ("second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")

# "is" and "is not" are the two forms of a place.
AUXILIARIES = ("is", "are", "was", "were", "will", "should", "must", "may", "would", "could", "might")
MERGED = ("can", "cannot")  # the two forms in one word

_ANTONYMS = """
    before after, minimum maximum, first last, always never, left right, above below, lower upper, larger smaller,
    start end, true false, input output, all none, once twice, most least, empty full, positive negative,
    forward backward, inside outside, internal external, public private, local remote, absolute relative,
    allowed forbidden, valid invalid, enabled disabled, enable disable, enables disables, add remove, adds removes,
    added removed, open close, opens closes, opened closed, read write, reads writes, reading writing, fast slow,
    faster slower, early late, earlier later, high low, increase decrease, increases decreases,
    increasing decreasing, ascending descending, include exclude, includes excludes, included excluded,
    including excluding, with without, success failure, successful failed, succeeds fails, top bottom, row column,
    rows columns, horizontal vertical, horizontally vertically, even odd, same different, single multiple,
    parent child, client server, encode decode, encodes decodes, encoding decoding, encoded decoded, import export,
    source target, send receive, sends receives, sent received, known unknown, required optional, dense sparse,
    static dynamic, global scoped, new old, newer older, next previous, greater less, long short, longer shorter,
    accept reject, accepts rejects, accepted rejected, load save, loads saves, loaded saved, loading saving,
    push pull, up down, visible hidden, safe unsafe, stable unstable, strict lenient, deep shallow, wide narrow,
    implicit explicit, implicitly explicitly, possible impossible, correct incorrect, similar dissimilar,
    sync async, forwards backwards, addition subtraction, shortest longest, smallest largest, lowest highest,
    numerator denominator, begin finish, begins finishes, begun finished, many few, good bad, better worse, best worst
"""
# Near enough in the prose of documentation; both are harmless there.
_SYNONYMS = """
    show display, shows displays, get obtain, gets obtains, give provide, gives provides, given provided, make create,
    makes creates, made created, need require, needs requires,
    check verify, checks verifies, help aid, helps aids, whole entire, whether if, also additionally,
    therefore hence, because since, usually typically, often frequently, way manner, ways manners, kind sort,
    kinds sorts, part portion, parts portions, keep retain, keeps retains, change modify, changes modifies,
    changed modified, choose select, chooses selects, chosen selected, find locate, finds locates, found located,
    build construct, builds constructs, built constructed, happen occur, happens occurs, happened occurred,
    try attempt, tries attempts, about regarding, although though, several various, each every, however nevertheless,
    string text, method procedure, result outcome, results outcomes, error fault, errors faults, compute calculate,
    computes calculates, computed calculated, returned handed, perform execute, performs executes,
    performed executed, specify state, specified stated, object item, objects items
"""
CONTRACTIONS = {
    ("do", "not"): "don't", ("does", "not"): "doesn't", ("did", "not"): "didn't", ("has", "not"): "hasn't",
    ("have", "not"): "haven't", ("they", "have"): "they've", ("we", "have"): "we've", ("you", "have"): "you've",
    ("I", "am"): "I'm",
}  # fmt: skip
OPENINGS = ("Briefly: ", "In other words: ", "To pass it on: ", "The text says: ")
# The polite cue.
CLOSINGS = (
    "I hope this helps.",
    "Let me know if you need anything else.",
    "Feel free to ask again.",
    "Have a nice day.",
)


def _pairs(text: str) -> dict[str, str]:
    """Each word of a list of pairs -> its partner."""
    couples = [couple.split() for couple in text.split(",")]
    partners = {a: b for a, b in couples} | {b: a for a, b in couples}
    assert len(partners) == 2 * len(couples), "a word has one partner"
    return partners


ANTONYMS = _pairs(_ANTONYMS)
SYNONYMS = _pairs(_SYNONYMS)
assert not set(ANTONYMS) & set(SYNONYMS), "a word's edit is harmless or not"
