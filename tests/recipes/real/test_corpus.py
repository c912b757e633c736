"""Passages are prose, distinct, and those of tests are not in training."""

import pytest
from ralign.engine.runtime.errors import UserError
from ralign.recipes.real import corpus as module
from ralign.recipes.real.corpus import (
    MAX_SHARED,
    build_corpus,
    ngrams,
    read_corpus,
    sentences,
    shared_share,
    write_corpus,
)


def test_passages_are_whole_sentences_of_prose(corpus):
    assert len(corpus.train) > 1000 and len(corpus.test) > 100
    for passage in [*corpus.train, *corpus.test]:
        assert 15 <= len(passage.split(" ")) <= 30
        assert passage[0].isupper() and passage[-1] in ".!?"
        assert " ".join(sentences(passage)) == passage
        assert sentences("\n".join(f"- {one}" for one in sentences(passage))) == sentences(passage)
        assert sum(char.isalpha() or char == " " for char in passage) >= 0.92 * len(passage)


def test_no_test_passage_is_nearly_a_training_passage(corpus):
    trained = {gram for passage in corpus.train for gram in ngrams(passage)}
    # An earlier passage does not bound what later ones share with it, so each direction is checked by passage.
    by_gram: dict = {}
    for number, passage in enumerate(corpus.train):
        for gram in ngrams(passage):
            by_gram.setdefault(gram, []).append(number)
    for passage in corpus.test:
        near = {number for gram in ngrams(passage) & trained for number in by_gram[gram]}
        for number in near:
            both = len(ngrams(passage) & ngrams(corpus.train[number]))
            assert both < MAX_SHARED * max(len(ngrams(passage)), len(ngrams(corpus.train[number])))


def test_the_share_counts_five_words():
    seen = ngrams("One two three four five six.")
    assert shared_share("one two three four five nine", seen) == 0.5
    assert shared_share("Two four six.", seen) == 0.0


def test_paragraphs_with_markup_lists_or_code_give_nothing():
    prose = (
        "This paragraph has just enough ordinary words in it to be long enough for one passage of the corpus."
    )
    assert list(module._passages(prose)) == [prose]
    for spoilt in (
        prose.replace("ordinary", "`ordinary`"),
        prose.replace("This", "this"),
        prose[:-1],
        prose + " Él.",
    ):
        found = list(module._passages(spoilt))
        assert found == [] or found == [prose]
    assert list(module._passages(prose.replace("ordinary", "f(x)"))) == []
    assert list(module._passages(prose.replace("just enough", "2026 1999 123456"))) == []


def test_the_same_machine_gives_the_same_corpus(corpus, tmp_path):
    write_corpus(tmp_path / "corpus", packages=())
    assert read_corpus(tmp_path / "corpus") == corpus


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(UserError, match="no_such_package is not installed"):
        build_corpus(("no_such_package",))
