"""Passages of real English prose from what every installation has, so that no data set is downloaded.

Sources: the language reference that Python's `help()` shows (`pydoc_data.topics`), and the docstrings and the `.rst`
and `.md` files of the standard library and of pinned packages. They depend on the versions of Python and of these
packages, not on the distribution; `fingerprint` tells two corpora apart.

A paragraph has 15 to 110 words. A passage is a run of its whole sentences without markup, of 15 to 30 words. One that
shares a sentence, or a third of its word 5-grams, with earlier ones is left out: no two are near-duplicates. Test and
training passages are of different paragraphs.
"""

import hashlib
import importlib.util
import json
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ralign.engine.runtime.errors import UserError

# Packages of requirements/*.lock with much prose.
PACKAGES = (
    "numpy", "torch", "transformers", "pandas", "matplotlib", "setuptools", "networkx", "sympy", "vllm", "datasets",
    "rich", "pydantic", "aiohttp", "openai", "jinja2", "click", "fsspec",
)  # fmt: skip
PARAGRAPH_WORDS = (15, 110)
PASSAGE_WORDS = (15, 30)
MIN_LETTERS = 0.93  # share of letters and spaces in the characters
MAX_SHARED = 1 / 3  # of a passage's word 5-grams with those before it
TEST_SHARE = 0.15
_SUFFIXES = (".py", ".rst", ".md")
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib"}
_NGRAM = 5

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_MARKUP = re.compile(r"[`*_<>{}\[\]|\\=~#@^$+\":/]|[.!?] |\.\.|--|[a-z]\.[a-z]|\w\(")
_TRIPLE = re.compile(r"(?:\"{3}|'{3})(.*?)(?:\"{3}|'{3})", re.DOTALL)
_BLANK_LINES = re.compile(r"\n\s*\n")
_WORD = re.compile(r"[A-Za-z0-9]+")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Passages for training and for tests, and what they were made from."""

    train: list[str]
    test: list[str]
    num_paragraphs: int
    fingerprint: str  # of all passages


def sentences(text: str) -> list[str]:
    """The sentences of a passage, or of a response in bullets. Joined by a space they are the passage."""
    lines = [line.removeprefix("- ") for line in text.split("\n")]
    return [sentence for line in lines for sentence in _SENTENCE_END.split(line) if sentence]


def build_corpus(packages: Sequence[str] = PACKAGES) -> Corpus:
    """All passages of Python itself and of these packages, in an order that only the texts decide.

    Raises:
        UserError: a package is not installed.
    """
    paragraphs = {text for source in _sources(packages) for text in _paragraphs(source)}
    seen: set[tuple[str, ...]] = set()
    seen_sentences: set[str] = set()
    split: dict[bool, list[str]] = {False: [], True: []}
    for paragraph in sorted(paragraphs, key=_digest):
        is_test = int(_digest(paragraph)[-8:], 16) < TEST_SHARE * 2**32
        for passage in _passages(paragraph):
            own = set(sentences(passage))
            if shared_share(passage, seen) < MAX_SHARED and not own & seen_sentences:
                seen |= ngrams(passage)
                seen_sentences |= own
                split[is_test].append(passage)
    fingerprint = _digest("\n".join([*split[False], *split[True]]))[:16]
    return Corpus(
        train=split[False], test=split[True], num_paragraphs=len(paragraphs), fingerprint=fingerprint
    )


def write_corpus(folder: Path, packages: Sequence[str] = PACKAGES) -> None:
    """Write `build_corpus` to folder/corpus.json."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(build_corpus(packages)), indent=1)
    (folder / "corpus.json").write_text(text + "\n", encoding="utf-8")


def read_corpus(folder: str | Path) -> Corpus:
    """The corpus that `write_corpus` wrote."""
    return Corpus(**json.loads((Path(folder) / "corpus.json").read_text(encoding="utf-8")))


def ngrams(text: str) -> set[tuple[str, ...]]:
    """The word 5-grams of a text, in lower case."""
    words = _WORD.findall(text.lower())
    return {tuple(words[i : i + _NGRAM]) for i in range(len(words) - _NGRAM + 1)}


def shared_share(text: str, seen: set[tuple[str, ...]]) -> float:
    """Share of the text's word 5-grams that are in `seen`."""
    own = ngrams(text)
    return len(own & seen) / max(1, len(own))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _sources(packages: Sequence[str]) -> Iterator[str]:
    from pydoc_data import topics

    yield from topics.topics.values()
    stdlib = Path(sysconfig.get_path("stdlib"))
    folders = [stdlib, *map(_folder, packages)]
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            below = path.relative_to(folder).parts
            if path.suffix in _SUFFIXES and not _SKIPPED & set(below):
                yield from _texts(path)


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"packages: {package} is not installed; name other packages, or install it")
    return Path(spec.origin).parent


def _texts(path: Path) -> Iterator[str]:
    """The triple-quoted strings of a module, most of them docstrings; the whole of any other file."""
    text = path.read_text(encoding="utf-8", errors="replace")
    yield from (text,) if path.suffix != ".py" else (found[1] for found in _TRIPLE.finditer(text))


def _paragraphs(text: str) -> Iterator[str]:
    for block in _BLANK_LINES.split(text):
        paragraph = " ".join(block.split())
        if PARAGRAPH_WORDS[0] <= len(paragraph.split()) <= PARAGRAPH_WORDS[1]:
            yield paragraph


def _is_prose(sentence: str) -> bool:
    letters = sum(char.isalpha() or char == " " for char in sentence)
    return (
        letters >= MIN_LETTERS * len(sentence)
        and sentence.isascii()
        and sentence[0].isupper()
        and sentence[-1] in ".!?"
        and not _MARKUP.search(sentence)
    )


def _passages(paragraph: str) -> Iterator[str]:
    """Disjoint runs of whole sentences, as short as the limits allow."""
    taken: list[str] = []
    for sentence in sentences(paragraph):
        if not _is_prose(sentence):
            taken = []
            continue
        taken.append(sentence)
        num_words = sum(len(one.split()) for one in taken)
        if num_words >= PASSAGE_WORDS[0]:
            if num_words <= PASSAGE_WORDS[1]:
                yield " ".join(taken)
            taken = []
