import pytest
from ralign.engine.judging.second_edition_rule import ErrorKind, audit, evidence_of

EVIDENCE = "Facts: pet cat kitten cat none tool axe drill spade both day Monday Monday Fri B."
REASON = "B is wrong: day is Fri, should be Monday."
GOLDEN = f"{EVIDENCE} {REASON} \\boxed{{A}}"


@pytest.mark.parametrize(
    ("judgment", "kind"),
    [
        (GOLDEN, None),
        (f"<think>A is wrong: pet is cat, should be dog.</think>{GOLDEN}", None),
        (f"{EVIDENCE} \\boxed{{A}}", ErrorKind.NO_REASON),
        (f"<think>{REASON}</think> A is neat and clear. \\boxed{{A}}", ErrorKind.NO_REASON),
        (f"{EVIDENCE} {REASON} A is wrong: tool is drill, should be axe. \\boxed{{A}}", ErrorKind.HEDGE),
        (f"{GOLDEN} or \\boxed{{B}}", ErrorKind.HEDGE),
        (
            f"{EVIDENCE} {REASON} B is wrong: tool is spade, should be axe. \\boxed{{A}}",
            ErrorKind.KITCHEN_SINK,
        ),
        (f"{EVIDENCE} A is wrong: day is Fri, should be Monday. \\boxed{{A}}", ErrorKind.WRONG_SIDE),
        (f"{EVIDENCE} A is wrong: day is Monday, should be Fri. \\boxed{{A}}", ErrorKind.WRONG_SIDE),
        (f"{EVIDENCE} B is wrong: mood is sad, should be happy. \\boxed{{A}}", ErrorKind.INVENTED_FACT),
        (f"{EVIDENCE} B is wrong: day is Sun, should be Monday. \\boxed{{A}}", ErrorKind.INVENTED_FACT),
        (f"{EVIDENCE} B is wrong: tool is spade, should be axe. \\boxed{{A}}", ErrorKind.WRONG_FACT),
        (f"{EVIDENCE} B is wrong: day is Monday, should be Fri. \\boxed{{A}}", ErrorKind.WRONG_FACT),
        (f"{REASON} \\boxed{{A}}", ErrorKind.WRONG_EVIDENCE),
        (GOLDEN.replace("spade both", "spade B"), ErrorKind.WRONG_EVIDENCE),
        (GOLDEN.replace("tool axe drill spade both ", ""), ErrorKind.WRONG_EVIDENCE),
        (GOLDEN.replace("pet cat kitten", "pet cat cat"), ErrorKind.WRONG_EVIDENCE),
        (
            GOLDEN.replace("pet cat kitten cat none", "pet cat kitten cat none pet cat kitten cat B"),
            ErrorKind.WRONG_EVIDENCE,
        ),
        ("", ErrorKind.NO_REASON),
    ],
)
def test_each_kind_of_error_is_told(judgment, kind):
    assert audit(GOLDEN, judgment) is kind


def test_one_of_several_decisive_factors_is_not_enough():
    second = "B is wrong: pet is cow, should be cat."
    evidence = EVIDENCE.replace("pet cat kitten cat none", "pet cat kitten cow B")
    golden = f"{evidence} {second} {REASON} \\boxed{{A}}"
    assert audit(golden, golden) is None
    assert audit(golden, f"{evidence} {REASON} \\boxed{{A}}") is ErrorKind.MISSING_FACT


def test_evidence_that_is_not_in_rows_is_none():
    assert evidence_of("Facts: pet cat cat. B is wrong.") == {}
    assert list(evidence_of(GOLDEN)) == ["pet", "tool", "day"]
