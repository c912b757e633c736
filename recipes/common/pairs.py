"""Training pairs and held-out pairs of a recipe."""

import os

from ralign.engine.config.run import Run
from ralign.engine.data.pairs import Pair, read_pairs
from ralign.engine.data.worlds.judgeworld import build_judgeworld
from ralign.engine.report.progress import Progress
from ralign.engine.runtime.errors import UserError
from ralign.engine.training.held_out import MAX_SIMILARITY, hold_out


def train_and_held_out(run: Run, *, need_golden: bool = True) -> tuple[list[Pair], list[Pair]]:
    """(training pairs, held-out pairs): of data.train, with up to `eval.num_pairs` held out, or of JudgeWorld.

    Raises:
        UserError: the file cannot be read, or no pair is left to train on.
    """
    if not run.data.train:
        world = build_judgeworld(run.data.world)
        return world["train"], world["unbiased"]
    pairs = read_pairs(run.data.train, max_bad_lines=run.data.max_bad_lines, need_golden=need_golden)
    if len(pairs) <= run.eval.num_pairs:
        raise UserError(
            f"data.train={run.data.train} has {len(pairs)} pairs, eval.num_pairs={run.eval.num_pairs}"
        )
    train, test, similar = hold_out(pairs, run.eval.num_pairs, run.seed)
    if similar:
        Progress(enabled=os.environ.get("RANK", "0") == "0").say(
            f"{len(similar)} of {len(pairs)} pairs left out of training: their prompts are nearly held-out ones"
            f" (word 5-grams in common: at least {MAX_SIMILARITY:.0%})"
        )
    return train, test
