import random

from ralign.engine.data.overlap import jaccard, near_duplicates, overlap, pair_text, shingles
from ralign.engine.data.pairs import Pair

_WORDS = [f"w{n}" for n in range(400)]


def _text(rng, num_words):
    return " ".join(rng.choices(_WORDS, k=num_words))


def _changed(text, rng, num_changes):
    words = text.split()
    for place in rng.sample(range(len(words)), num_changes):
        words[place] = "changed"
    return " ".join(words)


def _corpus(seed, num_texts=150):
    rng = random.Random(seed)
    texts = [_text(rng, rng.randint(3, 120)) for _ in range(num_texts)]
    texts += [_changed(text, rng, min(rng.randint(0, 4), len(text.split()))) for text in texts[:60]]
    rng.shuffle(texts)
    return texts


def _exact(first, second, threshold):
    grams = [[set(shingles(text).tolist()) for text in texts] for texts in (first, second)]
    return {
        (a, b)
        for a, x in enumerate(grams[0])
        for b, y in enumerate(grams[1])
        if x | y and len(x & y) / len(x | y) >= threshold
    }


def test_what_is_found_is_what_comparing_all_texts_finds():
    texts = _corpus(0)
    found = near_duplicates(texts, threshold=0.8)
    assert {(m.first, m.second) for m in found} == {(a, b) for a, b in _exact(texts, texts, 0.8) if a < b}
    assert len(found) > 10
    assert [m.similarity for m in found] == sorted((m.similarity for m in found), reverse=True)
    for match in found:
        assert match.similarity == jaccard(shingles(texts[match.first]), shingles(texts[match.second]))


def test_overlap_of_two_sets_is_what_comparing_all_texts_finds():
    train, test = _corpus(1), _corpus(1)[:40] + _corpus(2)
    found = {(m.first, m.second) for m in overlap(train, test, threshold=0.8)}
    assert found == _exact(train, test, 0.8) and len(found) >= 40
    assert overlap(_corpus(3), _corpus(4), threshold=0.5) == []


def test_case_and_marks_do_not_matter_and_empty_texts_are_like_nothing():
    (match,) = near_duplicates(["Where is Oslo, please?", "where is oslo please", "", "?!", ""])
    assert (match.first, match.second, match.similarity) == (0, 1, 1.0)


def test_many_copies_take_no_quadratic_time():
    texts = ["the same words in every one of these texts"] * 3000
    found = near_duplicates(texts)
    assert len(found) == 2999 and {m.second for m in found} == set(range(1, 3000))
    found = overlap(texts, texts[:2000])
    assert {m.first for m in found} == set(range(3000)) and {m.second for m in found} == set(range(2000))
    assert len(found) < 10_000


def test_pairs_are_compared_by_prompt_or_as_a_whole_whatever_the_order_of_the_responses():
    fields = dict(id="x", source="s", conversations=[{"role": "user", "content": "Q"}], gt_judgment="")
    pair = Pair(**fields, response_A="a", response_B="b", gt_label="A")
    turned = Pair(**fields, response_A="b", response_B="a", gt_label="B")
    assert pair_text(pair, whole=False) == "Q"
    assert pair_text(pair, whole=True) == pair_text(turned, whole=True) == "Q\na\nb"
