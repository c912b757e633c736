"""What a judge's warm start is trained on: golden judgments of users' pairs, or the model's own good judgments.

`golden` takes the golden judgments whose verdict is the label. `rejection` samples `algo.num_samples` judgments of each
of `sft.num_pairs` pairs, and keeps those whose verdict is the label and whose rationale the MetaRM finds Correct, at
most `sft.keep_per_pair` of a pair (rejection sampling, as in arXiv:2504.02495). Published judges start from one of the
two.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ralign.engine.config.run import EvalConfig
from ralign.engine.data.chat import encode_text
from ralign.engine.data.examples import Example
from ralign.engine.data.verdicts import END_OF_THINKING, THINKING, VerdictForm, verdict_of
from ralign.engine.judging.metarm import Outcome
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import replacing
from ralign.engine.training.evaluate import judge_pairs
from ralign.engine.training.genrm import GenRM
from ralign.engine.training.loop import warm_start_on_ids


@dataclass(kw_only=True, slots=True)
class Demonstrations:
    """Prompts and the token ids of their answers, [L] int64 each; `left_out` counts pairs by reason."""

    examples: list[Example]
    answers: list[np.ndarray]
    left_out: dict[str, int]

    def add(self, example: Example, answer: np.ndarray) -> None:
        self.examples.append(example)
        self.answers.append(answer)

    def leave_out(self, reason: str) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1


def judgment_ids(text: str, tokenizer, *, opens_thinking: bool = False) -> np.ndarray:
    """Token ids of a target judgment, with the end token: [L] int64.

    The tags of its thinking are the model's own tokens, where it has them; all other text is plain. `opens_thinking`:
    the prompt ends inside a thinking block, so the tag that opens it is not repeated, and a judgment without thinking
    closes the block at once.
    """
    thinking, end, visible = text.rpartition(END_OF_THINKING)
    if opens_thinking:
        thinking, end = thinking.strip().removeprefix(THINKING).lstrip(), END_OF_THINKING
    vocabulary, parts = tokenizer.get_added_vocab(), []
    for part in (*_split(thinking), end, visible):
        if part in (THINKING, END_OF_THINKING) and part in vocabulary:
            parts.append(np.array([vocabulary[part]]))
        elif part:
            parts.append(encode_text(part, tokenizer))
    return np.concatenate([*parts, [tokenizer.eos_token_id]]).astype(np.int64)


def _split(thinking: str) -> tuple[str, str, str]:
    return thinking.partition(THINKING)


def golden(genrm: GenRM, examples: Sequence[Example]) -> Demonstrations:
    """The golden judgments of the examples.

    Raises:
        UserError: none can be used.
    """
    run, tokenizer = genrm.run, genrm.session.tokenizer
    found = Demonstrations(examples=[], answers=[], left_out={})
    for example in examples:
        text = example.pair.gt_judgment
        if verdict_of(text, genrm.form) != example.pair.gt_label:
            found.leave_out(_no_verdict(genrm.form))
            continue
        ids = judgment_ids(text, tokenizer, opens_thinking=example.opens_thinking)
        if len(ids) > run.generator.max_new_tokens:
            found.leave_out(f"over generator.max_new_tokens={run.generator.max_new_tokens}")
            continue
        found.add(example, ids)
    return _checked(found, len(examples), genrm)


def _no_verdict(form: VerdictForm) -> str:
    return f"verdict in the form {form.name} is missing or not the label"


def rejection(genrm: GenRM, examples: Sequence[Example], folder: Path) -> Demonstrations:
    """The model's own judgments that are right for the right reason; collective.

    They are written to `folder`/rejection.jsonl, from which a resumed run reads them.

    Raises:
        UserError: none is.
    """
    run, session = genrm.run, genrm.session
    chosen = list(examples[: run.sft.num_pairs])
    path = folder / "rejection.jsonl"
    lines = session.cluster.on_first_rank(lambda: path.read_text(encoding="utf-8") if path.is_file() else "")
    if not lines:
        lines = _sample(genrm, chosen)
        session.cluster.on_first_rank(lambda: _write(path, lines))
    found = Demonstrations(examples=[], answers=[], left_out={})
    kept = set()
    for line in lines.splitlines():
        record = json.loads(line)
        number = record["example"]
        if number >= len(chosen) or chosen[number].pair.id != record["id"]:
            raise UserError(
                f"{path}: its judgments are of other pairs ({record['id']}); remove it to sample anew"
            )
        kept.add(number)
        found.add(chosen[record["example"]], np.array(record["ids"], dtype=np.int64))
    for number in range(len(chosen)):
        if number not in kept:
            found.leave_out(f"none of {run.algo.num_samples} judgments is right and Correct")
    return _checked(found, len(chosen), genrm)


def _sample(genrm: GenRM, examples: Sequence[Example]) -> str:
    """JSON lines {example, id, ids, text} of the kept judgments, in the order of the examples."""
    run, session = genrm.run, genrm.session
    with session.phase("evaluate"):
        session.begin_generation()
        judgments = judge_pairs(
            [example for example in examples for _ in range(run.algo.num_samples)],
            session,
            genrm.metarm,
            EvalConfig(temperature=run.generator.temperature, max_new_tokens=run.generator.max_new_tokens),
            seed=3_000_000 + run.seed,
            form=genrm.form,
        )
    lines, num_kept = [], dict.fromkeys(range(len(examples)), 0)
    for place, judgment in enumerate(judgments):
        number = place // run.algo.num_samples
        right = judgment.verdict == judgment.pair.gt_label and judgment.outcome is Outcome.CORRECT
        if not right or judgment.is_cut or num_kept[number] >= run.sft.keep_per_pair:
            continue
        num_kept[number] += 1
        record = {
            "example": number,
            "id": judgment.pair.id,
            "ids": judgment.ids.tolist(),
            "text": judgment.text,
        }
        lines.append(json.dumps(record, ensure_ascii=True))
    return "\n".join(lines)


def _write(path: Path, lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(lines + "\n")


def warm_start_on_pairs(genrm: GenRM, examples: Sequence[Example], name: str) -> Path:
    """Supervised training on the demonstrations of `sft.source`; returns the exported folder."""
    run = genrm.run
    if run.sft.source == "golden":
        found = golden(genrm, examples)
    else:
        found = rejection(genrm, examples, run.folder / name)
    genrm.session.progress.say(f"warm start on {len(found.examples)} judgments (sft.source={run.sft.source})")
    return warm_start_on_ids(genrm.session, run, name, found.examples, found.answers)


def _checked(found: Demonstrations, num_pairs: int, genrm: GenRM) -> Demonstrations:
    if found.left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items())
        genrm.session.progress.say(
            f"warm start: {sum(found.left_out.values())} of {num_pairs} pairs left out: {reasons}"
        )
    if not found.examples:
        raise UserError(f"sft.source={genrm.run.sft.source}: no judgment of {num_pairs} pairs can be used")
    return found
