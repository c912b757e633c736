r"""JudgeWorld, second edition: the decisive fact cannot be told from the differences between the responses.

As in the first edition, a note gives a few facts and two responses repeat them. Here

- each pair has a fact that is wrong in both responses, in different ways, and values may be stated in another word for
  the same: at least two facts differ, and only the note tells which difference decides;
- responses state the facts in an order of their own;
- a decisive factor quotes the response's wrong value and the note's;
- three cues of different strength: bullets, a polite closing, an opening. Each is on one of the two responses.

A golden judgment lists the evidence, then the factors, then the verdict:

    Facts: pet cat kitten cat none tool axe drill spade both day Monday Monday Fri B. B is wrong: day is Fri, should be
    Monday. \boxed{A}

An item of the evidence has the note's word, A's, B's and a mark: the side with a wrong value, "both" or "none".
`warm_start` has golden judgments only, and its cues agree in half of the pairs: no demonstration shows how to follow a
cue.
"""

import random

from ralign.engine.data.pairs import SIDES, Pair, Side, other_side, prompt_text
from ralign.engine.data.worlds.config import JudgeWorldConfig, agreements, num_pairs
from ralign.engine.data.worlds.surface import Surface, facts_of, write
from ralign.engine.data.worlds.words import PARAPHRASES

SOURCE = "judgeworld2"
_INSTRUCTION = "Pass on this note."
_MEANING = {
    word: value
    for values in PARAPHRASES.values()
    for value, other in values.items()
    for word in (value, other)
}


def build(config: JudgeWorldConfig) -> dict[str, list[Pair]]:
    """The splits of `build_judgeworld`. No prompt occurs twice."""
    rng = random.Random(f"judgeworld 2 {config.seed}")
    shares = {
        "cue_side": agreements(config, config.cue_agreement),
        "closing_side": agreements(config, config.closing_agreement),
        "opening_side": agreements(config, config.opening_agreement),
    }
    seen: set[str] = set()
    splits = {}
    for split, num in num_pairs(config).items():
        agrees = {cue: _shuffled(rng, share[split], num) for cue, share in shares.items()}
        splits[split] = [
            _make_pair(config, rng, seen, split, n, {cue: agree[n] for cue, agree in agrees.items()})
            for n in range(num)
        ]
    return splits


def _shuffled(rng: random.Random, share: float, num: int) -> list[bool]:
    """[num] bool in random order, of which `share` are true."""
    agrees = [index < round(share * num) for index in range(num)]
    rng.shuffle(agrees)
    return agrees


def _make_pair(
    config: JudgeWorldConfig,
    rng: random.Random,
    seen: set[str],
    split: str,
    number: int,
    agrees: dict[str, bool],
) -> Pair:
    while True:
        items = rng.sample(list(config.words), config.num_facts)
        note = {item: rng.choice(config.words[item][: config.num_values]) for item in items}
        prompt = f"{_INSTRUCTION} {write(note, Surface())}"
        if prompt not in seen:
            break
    seen.add(prompt)
    label = rng.choice(SIDES)
    sides = {cue: label if agree else other_side(label) for cue, agree in agrees.items()}
    stated = _stated(config, rng, note, label)
    responses = {
        side: write(
            dict(rng.sample(list(stated[side].items()), len(note))),
            Surface(
                bullets=sides["cue_side"] == side,
                closing=sides["closing_side"] == side,
                opening=sides["opening_side"] == side,
            ),
        )
        for side in SIDES
    }
    golden = judgment(note, stated["A"], stated["B"])
    assert golden is not None
    return Pair(
        id=f"{split}-{number:06d}",
        source=SOURCE,
        conversations=[{"role": "user", "content": prompt}],
        response_A=responses["A"],
        response_B=responses["B"],
        gt_label=label,
        gt_judgment=golden,
        meta={"defect_side": other_side(label), "split": split, **sides},
    )


def _stated(
    config: JudgeWorldConfig, rng: random.Random, note: dict[str, str], label: Side
) -> dict[Side, dict[str, str]]:
    """Side -> item -> the stated word: decisive faults, one fact wrong in both, and harmless words for the others."""
    items = rng.sample(list(note), len(note))
    shared, rest = items[0], items[1:]
    kinds = [
        (worse, better)
        for worse in range(1, config.max_faults + 1)
        for better in range(worse)
        if worse + better <= len(rest)
    ]
    num_worse, num_better = rng.choice(kinds)
    wrong_in: dict[str, tuple[Side, ...]] = {item: (other_side(label),) for item in rest[:num_worse]}
    wrong_in |= {item: (label,) for item in rest[num_worse : num_worse + num_better]}
    wrong_in[shared] = SIDES
    stated: dict[Side, dict[str, str]] = {side: {} for side in SIDES}
    for item, value in note.items():
        others = [other for other in config.words[item][: config.num_values] if other != value]
        wrong = iter(rng.sample(others, 2))
        for side in SIDES:
            meant = next(wrong) if side in wrong_in.get(item, ()) else value
            stated[side][item] = _in_words(config, rng, item, meant)
    return stated


def _in_words(config: JudgeWorldConfig, rng: random.Random, item: str, value: str) -> str:
    """The value or, in a share of the cases, the other word for it, be it right or wrong."""
    return PARAPHRASES[item][value] if rng.random() < config.paraphrase_share else value


def judgment(note: dict[str, str], stated_a: dict[str, str], stated_b: dict[str, str]) -> str | None:
    """Evidence, decisive factors, verdict; None if neither response is better."""
    evidence, factors, num_wrong = [], [], dict.fromkeys(SIDES, 0)
    for item, value in note.items():
        words = {"A": stated_a.get(item), "B": stated_b.get(item)}
        sides: list[Side] = [side for side in SIDES if _MEANING.get(words[side] or "") != value]
        mark = "both" if len(sides) == 2 else "none"
        if len(sides) == 1:
            (side,) = sides
            mark = side
            factors.append(f"{side} is wrong: {item} is {words[side]}, should be {value}.")
            num_wrong[side] += 1
        evidence.append(f" {item} {value} {words['A']} {words['B']} {mark}")
    if num_wrong["A"] == num_wrong["B"]:
        return None
    better = min(SIDES, key=num_wrong.__getitem__)
    return f"Facts:{''.join(evidence)}. {' '.join(factors)} \\boxed{{{better}}}"


def read(pair: Pair) -> str | None:
    """The judgment that the prompt and both responses give, without label and meta."""
    return judgment(*(facts_of(text) for text in (prompt_text(pair), pair.response_A, pair.response_B)))
