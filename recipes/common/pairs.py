"""Training pairs and held-out pairs of a recipe."""

from ralign.engine.config.run import Run
from ralign.engine.data.pairs import Pair, read_pairs
from ralign.engine.data.worlds.judgeworld import build_judgeworld
from ralign.engine.runtime.errors import UserError


def train_and_held_out(run: Run, *, need_golden: bool = True) -> tuple[list[Pair], list[Pair]]:
    """(training pairs, held-out pairs): of data.train, with the first `eval.num_pairs` held out, or of JudgeWorld.

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
    return pairs[run.eval.num_pairs :], pairs[: run.eval.num_pairs]
