"""A finding is one line, whatever a message holds; the JSON has all of it; a next step goes with what is not OK."""

import json

import pytest
from ralign.engine.check.report import as_json, as_text, fail, ok, size_text, warn, worst

FINDINGS = [
    ok("driver", "580.95.05"),
    warn("packages", "other than tried: a 2", "install the lock", ["a 2, tried 1"]),
    fail("/dev/shm", "64 MB free", "give the container more"),
]


def test_each_finding_is_a_line_with_its_next_step_and_the_last_line_counts():
    assert as_text(FINDINGS).splitlines() == [
        "OK    driver    580.95.05",
        "WARN  packages  other than tried: a 2; next: install the lock",
        "FAIL  /dev/shm  64 MB free; next: give the container more",
        "1 FAIL, 1 WARN, 1 OK",
    ]


def test_what_a_server_says_stays_on_its_line_and_moves_no_cursor():
    lines = as_text([fail("judge", "says\n  \x1b[2Jboom\r\u2028!", "see\nits log")]).splitlines()
    assert lines[0] == "FAIL  judge  says ?[2Jboom !; next: see its log" and len(lines) == 2


def test_json_has_level_details_and_the_worst_of_all():
    report = json.loads(as_json(FINDINGS, "r_align_32b"))
    assert (report["recipe"], report["level"]) == ("r_align_32b", "FAIL")
    assert [f["level"] for f in report["findings"]] == ["OK", "WARN", "FAIL"]
    assert report["findings"][1]["details"] == ["a 2, tried 1"]
    assert worst(FINDINGS[:2]) == "WARN" and worst(FINDINGS[:1]) == "OK"


def test_what_is_not_ok_has_a_next_step_and_what_is_ok_has_none():
    with pytest.raises(AssertionError):
        fail("driver", "too old", "")


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(393e9, "393 GB"), (1.2e12, "1.2 TB"), (64 << 20, "67 MB"), (5120, "5 kB")]
)
def test_sizes_are_decimal_as_disks_give_them(num_bytes, text):
    assert size_text(num_bytes) == text
