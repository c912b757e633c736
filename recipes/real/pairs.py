r"""Pairs on real text with golden judgments known by construction: which response passes a text on truly?

The prompt is a passage. Both responses repeat it with harmless edits. In one, a number, a word or a negation is altered
at one place. A second place may be altered in both. The judgment quotes the source and both responses at every place,
marks who differs, and states the one difference that decides:

    Source "the two tubes", A "the five tubes", B "the two tubes": A differs. A says "the five tubes", the source says
    "the two tubes". \boxed{B}

In half of the pairs the source itself has the altered form at the deciding place, and the worse response the original.
So neither the form nor how natural it is tells the label: only the source does.

One response has a cue, bullets or a polite closing sentence. It is on the better side in a share `cue_agreement` of the
splits `train` and `dev`, in half of `warm_start` and of the test `unbiased`, and in 1 - `cue_agreement` of the test
`adversarial`. No golden judgment mentions it. A twin of a pair has the cues of its two responses exchanged.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ralign.engine.data.pairs import SIDES, Pair, Side, other_side, prompt_text
from ralign.engine.data.twins import TwinKind
from ralign.engine.runtime.errors import UserError
from ralign.recipes.real.corpus import Corpus, sentences
from ralign.recipes.real.edits import KINDS, Sentence, are_apart, places_of, reworded, version
from ralign.recipes.real.words import CLOSINGS

TESTS = ("unbiased", "adversarial")
SOURCE = "real_text"
MAX_PLACES = 3
P_SHARED = 0.4  # a second place, if there is one, is altered in both responses
_INSTRUCTION = "Pass on this text.\n"


@dataclass(kw_only=True, slots=True)
class RealTextConfig:
    """Settings of the pairs on real text. The same corpus and settings give the same pairs."""

    num_warm_start: int = 4000  # pairs for the SFT warm start
    num_train: int = 1600  # pairs for RL
    num_dev: int = 128  # pairs of the training distribution, for tuning
    num_test: int = 256  # pairs in each of the two tests
    cue_agreement: float = 0.9  # share of training pairs in which the cue is on the better response
    kinds: str = "number,word,negation"  # of alterations; numbers are learned first
    seed: int = 0  # seed of the pairs

    def __post_init__(self) -> None:
        for name in ("num_warm_start", "num_train", "num_dev", "num_test"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0.5 <= self.cue_agreement <= 1:
            raise UserError(f"cue_agreement must be from 0.5 to 1, got {self.cue_agreement}")
        if unknown := [kind for kind in self.chosen_kinds if kind not in KINDS]:
            raise UserError(f"kinds={self.kinds}: no kind {unknown[0]!r}; there are {', '.join(KINDS)}")

    @property
    def chosen_kinds(self) -> tuple[str, ...]:
        return tuple(self.kinds.replace(" ", "").split(","))


def build_pairs(corpus: Corpus, config: RealTextConfig) -> dict[str, list[Pair]]:
    """The splits `unbiased`, `adversarial`, `dev`, `train` and `warm_start`; no passage is in two pairs.

    Raises:
        UserError: the corpus has too few passages with a place for an alteration.
    """
    agreement = config.cue_agreement
    sizes = {
        "unbiased": (config.num_test, 0.5),
        "adversarial": (config.num_test, 1 - agreement),
        "dev": (config.num_dev, agreement),
        "train": (config.num_train, agreement),
        "warm_start": (config.num_warm_start, 0.5),
    }
    rng = random.Random(config.seed)
    usable = {name: _usable(getattr(corpus, name), config, rng) for name in ("train", "test")}
    splits = {}
    for split, (num_pairs, share) in sizes.items():
        agrees = [index < round(share * num_pairs) for index in range(num_pairs)]
        rng.shuffle(agrees)
        passages = usable["test" if split in TESTS else "train"]
        splits[split] = []
        for number, cue_agrees in enumerate(agrees):
            if (passage := next(passages, None)) is None:
                raise UserError(
                    f"{split}: the corpus has passages for {number} of {num_pairs} pairs with kinds={config.kinds};"
                    " ask for fewer pairs (text.num_train, text.num_warm_start, ...), or for more kinds"
                )
            splits[split].append(_make_pair(passage, config, rng, split, number, cue_agrees))
    return splits


def _usable(passages: Sequence[str], config: RealTextConfig, rng: random.Random) -> Iterator[list[Sentence]]:
    """The passages, in drawn order, that have one to three places, with spans that do not meet and occur once."""
    order = list(passages)
    rng.shuffle(order)
    for text in order:
        passage = [sentence.split(" ") for sentence in sentences(text)]
        places = places_of(passage, config.chosen_kinds, rng)
        if not 1 <= len(places) <= MAX_PLACES or not are_apart(places) or "'" in text:
            continue
        if all(text.count(span) == 1 for span in version(passage, places, set()).spans):
            yield passage


def _make_pair(
    passage: list[Sentence],
    config: RealTextConfig,
    rng: random.Random,
    split: str,
    number: int,
    cue_agrees: bool,
) -> Pair:
    places = places_of(passage, config.chosen_kinds, rng)
    numbers = range(len(places))
    kind = rng.choice(sorted({place.kind for place in places}))  # rare kinds as often as frequent ones
    deciding = rng.choice([index for index in numbers if places[index].kind == kind])
    others = [index for index in numbers if index != deciding]
    in_source = {deciding} if rng.random() < 0.5 else set()
    better = set(in_source)
    if others and rng.random() < P_SHARED:
        better.add(rng.choice(others))
    label = rng.choice(SIDES)
    states = {label: better, other_side(label): better ^ {deciding}}
    texts = {side: version(passage, places, states[side]) for side in SIDES}
    source = version(passage, places, in_source)
    cue_side = label if cue_agrees else other_side(label)
    cue = rng.choice(("bullets", rng.choice(CLOSINGS)))
    plain = {side: reworded(texts[side], rng) for side in SIDES}
    responses = {side: _with_cue(plain[side], cue if side == cue_side else "") for side in SIDES}
    return Pair(
        id=f"{split}-{number:06d}",
        source=SOURCE,
        conversations=[
            {"role": "user", "content": _INSTRUCTION + " ".join(" ".join(words) for words in source.words)}
        ],
        response_A=responses["A"],
        response_B=responses["B"],
        gt_label=label,
        gt_judgment=judgment(source.spans, texts["A"].spans, texts["B"].spans),
        meta={
            "kind": kind,
            "cue_side": cue_side,
            "cue": "bullets" if cue == "bullets" else "polite",
            "split": split,
        },
    )


def judgment(source: Sequence[str], a: Sequence[str], b: Sequence[str]) -> str:
    """The judgment of spans, place by place. Exactly one place must decide."""
    lines, decided = [], []
    for true, in_a, in_b in zip(source, a, b, strict=True):
        wrong = [side for side, span in zip(SIDES, (in_a, in_b), strict=True) if span != true]
        mark = "both differ" if len(wrong) == 2 else f"{wrong[0]} differs" if wrong else "same"
        lines.append(f'Source "{true}", A "{in_a}", B "{in_b}": {mark}.')
        if len(wrong) == 1:
            decided.append((wrong[0], in_a if wrong[0] == "A" else in_b, true))
    ((side, false, true),) = decided
    factor = f'{side} says "{false}", the source says "{true}".'
    return f"{' '.join(lines)} {factor} \\boxed{{{other_side(side)}}}"


def decisive_start(golden: str) -> int:
    """The character of a golden judgment at which it names the worse side for the first time: its mark."""
    return min(place + 2 for side in SIDES if (place := golden.find(f": {side} differs.")) >= 0)


def passage_of(pair: Pair) -> str:
    """The text that both responses pass on."""
    return prompt_text(pair).removeprefix(_INSTRUCTION)


def _with_cue(parts: Sequence[str], cue: str) -> str:
    if cue == "bullets":
        return "\n".join(f"- {part}" for part in parts)
    return " ".join([*parts, cue] if cue else parts)


def split_cue(response: str) -> tuple[list[str], str]:
    """The sentences of a response without its cue, and the cue: "bullets", a closing sentence, or ""."""
    parts = sentences(response)
    if response.startswith("- "):
        return parts, "bullets"
    if parts[-1] in CLOSINGS:
        return parts[:-1], parts[-1]
    return parts, ""


def _cues_exchanged(pair: Pair) -> Pair | None:
    """The pair with each response's cue on the other one; None for a pair of another source."""
    if pair.source != SOURCE:
        return None
    (parts_a, cue_a), (parts_b, cue_b) = split_cue(pair.response_A), split_cue(pair.response_B)
    side: Side = other_side(pair.meta["cue_side"])
    return replace(
        pair,
        response_A=_with_cue(parts_a, cue_b),
        response_B=_with_cue(parts_b, cue_a),
        meta={**pair.meta, "cue_side": side},
    )


TWIN = TwinKind(make=_cues_exchanged, why_none="only pairs of recipes/real have cues that can be exchanged")
