"""The MetaRM of the pairs on real text: a rule that reads quotations.

    metarm.kind=ralign.recipes.real.metarm:SPANS

A rationale is Correct if it states exactly the golden difference: the side, the altered span and the true one. Each
line of evidence must be one of the golden judgment, so a rationale that misquotes a text, or marks the wrong side, is
Incorrect whatever it concludes. Lines may be left out. Any other text, such as praise of the layout or a difference in
other words, makes it Incorrect, too.
"""

import re

from ralign.engine.data.verdicts import visible
from ralign.engine.judging.metarm import Outcome, RuleBased
from ralign.engine.judging.metarms import MetaRMKind
from ralign.engine.runtime.errors import UserError

_FACTOR = re.compile(r'\b([AB]) says "([^"]*)", the source says "([^"]*)"\.')
_LINE = re.compile(r'Source "([^"]*)", A "([^"]*)", B "([^"]*)": ([^.]*)\.')
_BOX = re.compile(r"\\boxed\{[AB]\}")


class SpanMetaRM(RuleBased):
    """Compares the differences and the evidence of two judgments, word for word."""

    def outcome(self, golden: str, judgment: str) -> Outcome:
        """`CORRECT` or `INCORRECT`; UserError if `golden` states no difference in this form."""
        golden, judgment = visible(golden), visible(judgment)
        expected = set(_FACTOR.findall(golden))
        if not expected:
            raise UserError(
                f"metarm.kind=...:SPANS reads pairs of recipes/real only, got the golden judgment {golden[:80]!r};"
                " other pairs need metarm.kind=endpoint or managed"
            )
        same_factors = set(_FACTOR.findall(judgment)) == expected
        true_evidence = set(_LINE.findall(judgment)) <= set(_LINE.findall(golden))
        rest = _BOX.sub("", _FACTOR.sub("", _LINE.sub("", judgment)))
        return Outcome.CORRECT if same_factors and true_evidence and not rest.strip() else Outcome.INCORRECT


SPANS = MetaRMKind(open=lambda config, context: SpanMetaRM())
