"""JudgeWorld's counterfactual twin: the same pair with the cues of its two responses exchanged."""

from ralign.engine.data.pairs import Pair
from ralign.engine.data.twins import TwinKind
from ralign.engine.data.worlds.judgeworld import has_oracle_judgment
from ralign.engine.data.worlds.surface import exchange_surfaces


def _other_cues(pair: Pair) -> Pair | None:
    return exchange_surfaces(pair) if has_oracle_judgment(pair) else None


CUES = TwinKind(make=_other_cues, why_none="they are not pairs of JudgeWorld")
