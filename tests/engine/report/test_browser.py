"""The page to read judgments on, in a real browser without a network; the number of rows is what users have."""

import random
import shutil
import time

import pytest
from ralign.engine.data.verdicts import visible
from ralign.engine.judging.metrics import measure
from ralign.engine.report.browser import write_browser
from ralign.engine.report.summary import make_summary

NUM_ROWS = 5000
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_KINDS = ("Correct", "Incorrect", "SkippedLabelMismatch", "unparsable", "CallFail", "ParseFail")
_THINKING = {  # row -> judgment, and what of it is thinking
    11: ("one <think> two", " two"),
    12: ("<think>cut off", "cut off"),
    13: ("one</think> two <think> three", "one\n\n three"),
    14: ("one</think>two</think> three ", "one</think>two"),
    15: (" no thinking", ""),
}
_EVIL = "</script><script>window.evil = 1</script><img src=x onerror='window.evil = 1'><!-- <b>bold</b>"


def _record(number, kind, rng, filler):
    verdict = {"SkippedLabelMismatch": "B", "unparsable": None}.get(kind, "A")
    return {
        "id": f"pair-{number}",
        "source": {"subset": ("code", "math")[number % 2]},
        "conversations": [
            {"role": "user", "content": f"Earlier question {number}"},
            {"role": "assistant", "content": "Earlier answer"},
            {"role": "user", "content": f"Question {number}: which city? {_EVIL if number == 7 else ''}"},
        ],
        "response_A": f"Oslo, answer {number}. {filler(2500)}",
        "response_B": f"Lima, answer {number}. {filler(2500)}",
        "gt_label": "A",
        "gt_judgment": f"<think>secret {number}</think>Golden {number}: B names the wrong city.",
        "model_judgment": f"Rationale {number}. {'needle-' + str(number) if number % 500 == 3 else ''} "
        + filler(3000)
        + (f" \\boxed{{{verdict}}}" if verdict else ""),
        "model_pred": verdict,
        "metarm_verdict": "SkippedLabelMismatch" if kind == "unparsable" else kind,
        "metarm_analysis": f"Analysis {number}",
        "metarm_raw": f"<final_verdict>{kind}</final_verdict>",
        "meta": {"metarm_error": "timeout" if kind == "CallFail" else None},
    }


@pytest.fixture(scope="module")
def records():
    rng = random.Random(0)
    words = [f"word{n}" for n in range(3000)]

    def filler(num_chars):
        return " ".join(rng.choices(words, k=num_chars // 8))

    kinds = rng.choices(_KINDS, (50, 20, 15, 5, 5, 5), k=NUM_ROWS)
    made = [_record(number, kind, rng, filler) for number, kind in enumerate(kinds)]
    for number, (judgment, _) in _THINKING.items():
        made[number]["model_judgment"] = judgment
    made[19] |= {"model_judgment": None, "meta": {"model_error": "status 500"}}
    return made


@pytest.fixture(scope="module")
def page_path(records, tmp_path_factory):
    columns = zip(*[(r["model_pred"], r["gt_label"], r["metarm_verdict"]) for r in records], strict=True)
    result = measure(*map(list, columns))
    half = {"m1": {"t": records[: NUM_ROWS // 2]}, "m2": {"t": records[NUM_ROWS // 2 :]}}
    summary = make_summary({"m1": {"t": result}, "m2": {"t": result}}, seed=0, time_s={})
    path = tmp_path_factory.mktemp("page") / "index.html"
    return write_browser(summary, half, path, subset_of=lambda record: record["source"]["subset"])


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    executable = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if executable is None:
        pytest.skip(f"needs Chromium (Debian: apt install chromium): none of {', '.join(_BROWSERS)} is there")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser, page_path):
    context = browser.new_context(offline=True, viewport={"width": 1400, "height": 900})
    opened = context.new_page()
    opened.problems, opened.requests = [], []
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.on("console", lambda said: said.type == "error" and opened.problems.append(said.text))
    opened.on("request", lambda request: opened.requests.append(request.url))
    start_s = time.perf_counter()
    opened.goto(page_path.as_uri())
    opened.wait_for_selector(".row")
    opened.start_s = time.perf_counter() - start_s
    yield opened
    assert opened.problems == []
    assert opened.requests == [page_path.as_uri()]
    assert opened.evaluate("window.evil") is None
    context.close()


def _search(page, text):
    """Types into the search field and waits for the result; returns the seconds it took."""
    before = page.evaluate("document.body.dataset.settled")
    start_s = time.perf_counter()
    page.fill("#search", text)
    page.wait_for_function("before => document.body.dataset.settled !== before", arg=before)
    return time.perf_counter() - start_s


def _num_shown(page):
    return int(page.inner_text("#status").split(" of ")[0].replace(",", ""))


def _press(page, name):
    before = page.evaluate("document.body.dataset.settled")
    page.click(f"button[data-filter={name}]")
    page.wait_for_function("before => document.body.dataset.settled !== before", arg=before)


def test_the_page_opens_with_the_summary_and_few_rows_in_the_document(page, records):
    assert _num_shown(page) == NUM_ROWS
    assert page.locator(".row").count() < 60
    assert page.locator("main table tr").count() == 3
    assert page.evaluate("document.getElementById('list').scrollHeight") >= NUM_ROWS * 40
    assert page.start_s < 10  # a fraction of a second on an idle machine


def test_scrolling_to_the_end_shows_the_last_row(page):
    page.evaluate("document.getElementById('list').scrollTop = 1e9")
    page.wait_for_selector(f".row[data-row='{NUM_ROWS - 1}']")
    assert page.locator(".row").count() < 60
    page.click(f".row[data-row='{NUM_ROWS - 1}']")
    page.wait_for_selector(f"main[data-row='{NUM_ROWS - 1}']")
    assert f"Rationale {NUM_ROWS - 1}." in page.inner_text("main")


def test_filters_show_what_they_say(page, records):
    counts = {name: sum(r["metarm_verdict"] == name for r in records) for name in _KINDS}
    for name, expected in (
        ("spurious", counts["Incorrect"]),
        ("wrong", counts["SkippedLabelMismatch"]),
        ("failed", counts["CallFail"] + counts["ParseFail"]),
        ("unread", sum(r["model_pred"] is None for r in records)),
        ("all", NUM_ROWS),
    ):
        _press(page, name)
        assert _num_shown(page) == expected
        button = page.locator(f"button[data-filter={name}]")
        assert button.get_attribute("aria-pressed") == "true" and f"{expected:,}" in button.inner_text()
    _press(page, "spurious")
    page.select_option("#model", "1")
    page.select_option("#subset", label="math")
    expected = [
        r
        for n, r in enumerate(records)
        if n >= NUM_ROWS // 2 and n % 2 and r["metarm_verdict"] == "Incorrect"
    ]
    page.wait_for_function(
        "n => document.getElementById('status').textContent.startsWith(n + ' ')", arg=f"{len(expected):,}"
    )


def test_search_finds_every_text_and_marks_what_it_found(page, records):
    page.wait_for_function("() => document.body.dataset.loaded")
    _search(page, "needle-")
    assert _num_shown(page) == sum("needle-" in (r["model_judgment"] or "") for r in records) == 10
    took_s = _search(page, "needle-503")
    assert _num_shown(page) == 1
    page.click(".row")
    page.wait_for_selector("main[data-row='503']")
    assert page.inner_text("main mark").lower() == "needle-503"
    for text in (
        "pair-4999",
        '"lima, answer 4999."',
        "analysis 4999 oslo",
        '"golden 4999:"',
        '"question 4999:"',
    ):
        _search(page, text)
        assert _num_shown(page) == 1, text
    _search(page, "no such text anywhere")
    assert _num_shown(page) == 0
    assert took_s < 10


def test_the_judgment_stands_side_by_side_with_all_that_belongs_to_it(page, records):
    number = next(n for n, r in enumerate(records) if r["metarm_verdict"] == "CallFail")
    page.goto(page.url.split("#")[0] + f"#row={number}")
    page.reload()
    page.requests.clear()
    page.requests.append(page.url.split("#")[0])
    page.wait_for_selector(f"main[data-row='{number}']")
    text = page.inner_text("main")
    for part in (
        f"Oslo, answer {number}.",
        f"Lima, answer {number}.",
        f"Golden {number}: B names",
        "timeout",
    ):
        assert part in text
    assert f"Analysis {number}" in text and "RESPONSE A (BETTER)" in text.upper() and "MetaRM failed" in text
    boxes = [
        page.locator("main h3", has_text=heading).first.bounding_box()
        for heading in ("Response A", "Response B")
    ]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    thinking = page.locator("main details", has_text="Thinking").first
    secret = thinking.get_by_text(f"secret {number}")
    assert not secret.is_visible()
    thinking.locator("summary").click()
    assert secret.is_visible()


def test_what_the_metarm_was_not_shown_is_folded_away(page, records):
    """As `visible` has it, for thinking that was ended, begun anew, and never ended."""
    for number, (judgment, thinking) in _THINKING.items():
        page.evaluate("number => choose(number)", number)
        page.wait_for_selector(f"main[data-row='{number}']")
        rationale = page.locator("section", has=page.get_by_role("heading", name="Rationale"))
        shown = rationale.locator("> .text").text_content()
        assert shown == (visible(judgment) or "–") and records[number]["model_judgment"] == judgment
        folded = rationale.locator("details .text")
        assert folded.count() == bool(thinking) and (not thinking or folded.text_content() == thinking)


def test_a_call_that_failed_says_why_where_the_rationale_would_stand(page):
    page.evaluate("choose(19)")
    page.wait_for_selector("main[data-row='19']")
    rationale = page.locator("section", has=page.get_by_role("heading", name="Rationale"))
    assert rationale.locator("> .text").text_content() == "The call failed: status 500"


def test_figures_that_one_test_lacks_leave_the_others_in_the_summary(tmp_path, browser):
    columns = ["A", "B"], ["A", "A"], ["Correct", "SkippedLabelMismatch"]
    whole = measure(*columns, swapped_verdicts=["B", "B"]) | {
        "num_call_fail": 1, "num_swapped_call_fail": 2, "num_metarm_call_fail": 0, "num_metarm_parse_fail": 0,
    }  # fmt: skip
    summary = make_summary({"m": {"both": whole, "one": measure(*columns)}}, seed=0, time_s={})
    opened = browser.new_page()
    opened.goto(write_browser(summary, {}, tmp_path / "index.html").as_uri())
    header, both, one = (row.locator("th, td").all_inner_texts() for row in opened.locator("main tr").all())
    place = header.index("Swap"), header.index("Calls failed")
    assert both[place[0]].startswith("50.0") and both[place[1]] == "1 + 2 swapped"
    assert [one[n].strip() for n in place] == ["–", "–"] and one[header.index("L-Acc")].startswith("50.0")
    opened.close()


def test_keys_walk_through_the_list_and_the_address_keeps_the_view(page):
    _press(page, "spurious")
    page.locator("#list").focus()
    for _ in range(3):
        page.keyboard.press("j")
    page.keyboard.press("k")
    page.wait_for_selector("main[data-row]")
    chosen = page.get_attribute("main", "data-row")
    assert chosen == page.locator(".row").nth(1).get_attribute("data-row")
    assert "filter=spurious" in page.url and f"row={chosen}" in page.url
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"


def test_what_models_wrote_is_shown_and_never_run(page):
    _search(page, "window.evil")
    assert _num_shown(page) == 1
    page.click(".row")
    page.wait_for_selector("main[data-row='7']")
    assert _EVIL in page.inner_text("main")


def test_the_file_is_one_and_names_no_other(page_path, records):
    page = page_path.read_text(encoding="utf-8")
    assert "http://" not in page and "https://" not in page and page.count("<html") == 1
    assert page.count("</script>") == page.count("<script")
    size = sum(len(str(record)) for record in records)
    assert len(page) < 0.6 * size
