"""The timeline in a real Chromium, from its file: nothing goes out, texts stay texts, and it can be used by keyboard.

Without playwright (`pip install playwright`) and Chromium (`apt-get install chromium`) these tests are left out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hostile_batch import FAMILY, IMAGE, MARKUP, WORKFLOW
from made_histories import made_history, renamed
from support import wait_until
from support_processes import child, in_thread

from iso_orchestrator import Workflow
from iso_orchestrator.record.history import History, Outcome, WaitFor
from iso_orchestrator.store import Store, find_store, store_in_use
from iso_orchestrator.views.live import read_history
from iso_orchestrator.views.notebook import Timeline
from iso_orchestrator.views.timeline import timeline_page
from iso_orchestrator.views.timeline_file import write_timeline

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]

SHOWN = "\\u202etxt.exe\\u202c & \"quotes\" 'n' `ticks`"  # how a name that turns its direction is shown


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Of a real batch that was killed once, with hostile names, results, errors and logs."""
    folder = tmp_path_factory.mktemp("batch")
    script = Path(__file__).with_name("hostile_batch.py")
    env = os.environ | {"STAND_IN_SECONDS": "0.1"}
    for code in (-9, 0):
        done = subprocess.run([sys.executable, script, folder], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
    return store_in_use(find_store(None, str(folder)))


@pytest.fixture(scope="module")
def history(store: Store) -> History:
    return read_history(store, WORKFLOW)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("timeline") / "a.html"
    write_timeline(store, WORKFLOW, str(path), utc=True)
    return path


class Watched:
    """An open page, and all that it did which a page of records must not do."""

    def __init__(self, browser: Any, file: Path, fragment: str = "", **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1440, "height": 1000}, **options})
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.faults: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.faults.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.faults.append("dialog"), dialog.dismiss()))
        self.page.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error(`violation: ${e.violatedDirective}`))"
        )
        self.page.goto(f"{file.as_uri()}{fragment}")
        if options.get("java_script_enabled", True):
            self.page.wait_for_function("performance.getEntriesByName('timeline-ready').length")

    def run(self, script: str) -> Any:
        return self.page.evaluate(script)

    def text(self, selector: str) -> str:
        return str(self.page.text_content(selector))

    def point(self, bar: int) -> tuple[float, float]:
        """Where the middle of a bar is on the screen."""
        self.page.locator("#gantt").scroll_into_view_if_needed()
        self.run(f"reveal({bar})")
        self.run("draw()")
        box = self.page.locator("#gantt").bounding_box()
        x = self.run(f"xOf((placeBegin[{bar}] + placeEnd[{bar}]) / 2)")
        y = self.run(f"TOP + (laneOf[{bar}] + 0.5) * laneHeight - scroller.scrollTop")
        return box["x"] + x, box["y"] + y


@pytest.fixture
def watched(browser: Any, file: Path) -> Iterator[Watched]:
    watched = Watched(browser, file)
    yield watched
    watched.context.close()


def test_the_file_asks_for_nothing_and_holds_nothing_that_acts(watched: Watched, file: Path) -> None:
    """The only request is the file; two scripts, no image, frame, form, handler or style attribute."""
    watched.run("for (let bar = 0; bar < barCount; bar++) { choose(bar); showTip(bar, {clientX: 9, clientY: 9}); }")
    for mode in ("keys", "steps", "workers"):
        watched.run(f"setMode('{mode}')")
    assert watched.requests == [file.as_uri()]
    assert watched.faults == []
    assert watched.run("document.querySelectorAll('script').length") == 2
    assert watched.run("document.querySelectorAll('img, iframe, form, object, embed, link, base').length") == 0
    names = watched.run("[...document.querySelectorAll('*')].flatMap((element) => element.getAttributeNames())")
    assert [name for name in names if name.startswith("on")] == []
    source = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", file.read_text(), flags=re.DOTALL)
    assert not re.search(r"<[^>]* style\s*=", source)


def test_markup_is_text_everywhere(watched: Watched, history: History) -> None:
    """Names, errors, results and log lines with tags are shown as they are, in page, tooltip, details and table."""
    failed = next(step for step in history.steps if step.outcome is Outcome.FAILED)
    index = history.steps.index(failed)
    assert MARKUP in failed.name
    assert failed.name in watched.text(".fail")
    watched.run(f"chooseStep({index})")
    assert failed.name in watched.text("#panel h2")
    assert IMAGE in watched.text("#panel .mono")
    assert failed.name in watched.text("#tall [aria-selected=true]")
    x, y = watched.point(watched.run("chosenBar"))
    watched.page.mouse.move(x, y)
    assert failed.name in watched.text("#tip")
    completed = next(i for i, step in enumerate(history.steps) if step.result == f"The change is sound. {MARKUP}")
    watched.run(f"chooseStep({completed})")
    assert MARKUP in watched.text("#panel h3:text('Result') + pre")
    pushed = next(i for i, step in enumerate(history.steps) if step.name == "push:main")
    watched.run(f"chooseStep({pushed})")
    assert f"{IMAGE}\\x1b[31m" in watched.text("#panel")
    assert f"origin': {MARKUP}" in watched.text(".fail pre >> nth=-1")
    for shown in (SHOWN, FAMILY):
        watched.page.fill("#search", shown)
        assert shown in watched.text("#tall .row")
    assert watched.faults == []
    with pytest.raises(playwright.Error, match="TrustedHTML"):
        watched.run("document.body.innerHTML = '<b>x</b>'")


def test_without_script_everything_is_there(browser: Any, file: Path, history: History) -> None:
    """Failures, tiles, the picture and all rows are visible, the canvas is not."""
    page = Watched(browser, file, java_script_enabled=False).page
    assert page.is_visible(".fail")
    assert page.locator(".tile").count() == 6
    assert page.is_visible("svg.static")
    assert page.locator("tbody tr").count() == len(history.steps)
    assert page.is_visible("tbody tr >> nth=-1")
    assert not page.is_visible("#gantt")
    page.context.close()


def test_print_has_the_picture_and_open_failures(watched: Watched) -> None:
    """On paper: the drawing instead of the canvas, failures opened, at most 6 pages for some 70 steps."""
    paper = watched.page.pdf(format="A4")
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", paper)) in range(1, 7)
    assert watched.run("[...document.querySelectorAll('.fail details')].every((one) => one.open)")
    watched.page.emulate_media(media="print")
    assert watched.page.is_visible("svg.static")
    assert watched.page.is_visible("tbody tr >> nth=-1")
    assert not watched.page.is_visible("#gantt")


def test_the_keyboard_reaches_everything(watched: Watched) -> None:
    """Tab reaches the timeline; f and Enter open the first failure; Esc returns; arrows choose; / filters."""
    page = watched.page
    for _ in range(40):
        page.keyboard.press("Tab")
        if watched.run("document.activeElement.id") == "gantt":
            break
    assert watched.run("document.activeElement.id") == "gantt"
    page.keyboard.press("f")
    first = watched.run("chosenBar")
    assert first == watched.run("failures[0]")
    page.keyboard.press("Enter")
    assert watched.run("document.activeElement.id") == "panel"
    page.keyboard.press("Escape")
    assert watched.run("document.activeElement.id") == "gantt"
    assert not page.is_visible("#panel")
    page.keyboard.press("ArrowRight")
    said = watched.text("#live")
    chosen = watched.run("chosenBar")
    page.keyboard.press("ArrowRight")
    assert watched.run("chosenBar") != chosen
    assert watched.text("#live") not in ("", said)
    page.keyboard.press("ArrowDown")
    assert watched.run("laneOf[chosenBar]") == watched.run(f"laneOf[{chosen}]") + 1
    page.keyboard.press("+")
    assert watched.run("viewEnd - viewBegin < extent")
    page.keyboard.press("0")
    assert watched.run("viewEnd - viewBegin === extent")
    page.keyboard.press("/")
    assert watched.run("document.activeElement.id") == "search"


def test_filters_and_sorting(watched: Watched, browser: Any, file: Path, history: History) -> None:
    """Texts of errors are searched, chips count, a link opens its step, and every head sorts."""
    page, count = watched.page, len(history.steps)
    page.fill("#search", "overloaded")
    errors = [[span.error.message for span in step.attempts if span.error] for step in history.steps]
    retried = [messages for messages in errors if any("overloaded" in message for message in messages)]
    assert watched.text("#count") == f"{len(retried)} of {count} steps"
    page.fill("#search", "")
    page.click("[data-chip=failed]")
    assert watched.text("[data-chip=failed]") == "Failed 3"
    assert watched.text("#count") == f"3 of {count} steps"
    page.click("[data-chip=all]")
    for head in page.locator(".grid.head button").all():
        name = head.get_attribute("data-sort")
        head.click()
        sign = watched.run("sortSign")
        values = watched.run(f"order.map((step) => SORTS['{name}'](step))")
        key = _utf16 if name in ("name", "key") else None
        assert values == sorted(values, key=key, reverse=sign < 0), name
    opened = Watched(browser, file, "#s34")
    assert opened.run("document.querySelector('#panel dl dd:last-of-type').textContent") == "#34"
    opened.context.close()


def _utf16(text: str) -> bytes:
    """As JavaScript compares texts."""
    return text.encode("utf-16-be")


def test_hovering_says_what_a_bar_is(browser: Any, tmp_path: Path) -> None:
    """Step, attempt, outcome and time; until when a limit lasts and who met it; who holds a key."""
    history = made_history(300)
    path = tmp_path / "made.html"
    path.write_text(timeline_page(history, utc=True))
    watched = Watched(browser, path)

    def tip(bar: int) -> str:
        watched.run(f"setView(placeBegin[{bar}] - 2000, placeEnd[{bar}] + 2000)")
        watched.page.mouse.move(*watched.point(bar))
        return watched.text("#tip")

    bar = watched.run("failures[0]")
    step = history.steps[watched.run(f"stepOf[{bar}]")]
    assert step.name in tip(bar)
    assert re.search(r"attempt \d: failed\d\d:\d\d:\d\d\.\d\d, \d", tip(bar))
    limit = next(wait for one in history.steps for wait in one.waits if wait.kind is WaitFor.LIMIT)
    assert limit.until is not None
    text = tip(watched.run("kind.indexOf(LIMIT)"))
    assert "waiting for a usage limit claude" in text
    assert f"until {limit.until:%H:%M:%S}, met first by {limit.met_by}" in text
    watched.run("setMode('keys')")
    text = tip(watched.run("kind.indexOf(KEY)"))
    assert re.search(r"waiting for the key key \d+", text)
    assert "held by pid 2275" in text
    assert watched.faults == []
    watched.context.close()


HOLD = """
with workflow, workflow.mutex("ledger"):
    say("held")
    hear()
"""


def test_a_wait_for_another_process_s_key_is_a_bar(browser: Any, tmp_path: Path) -> None:
    """On a real record: in the row of the key, and its tooltip has the process that held it."""
    with child(HOLD, tmp_path) as holder:
        assert holder.line() == "held"
        workflow = Workflow("w", dir=tmp_path)

        def pay(number: int) -> int:
            return workflow.run_step(f"pay:{number}", lambda: number)

        with workflow:
            batch = in_thread(
                workflow.run_for_each, range(2), pay, mutex_key=lambda _: "ledger", max_parallel=2, progress=False
            )
            wait_until(lambda: any(event.type == "mutex.waiting" for event in workflow.record.events))
            holder.say()
            batch.result()
    path = tmp_path / "keys.html"
    write_timeline(store_in_use(find_store(None, str(tmp_path))), "w", str(path))
    watched = Watched(browser, path)
    watched.run("setMode('keys')")
    bar = watched.run("kind.indexOf(KEY)")
    assert watched.run(f"end[{bar}] - begin[{bar}]") > 1000
    watched.page.mouse.move(*watched.point(bar))
    tip = watched.text("#tip")
    assert "waiting for the key ledger" in tip
    assert f"held by pid {holder.pid}" in tip
    assert watched.faults == []
    watched.context.close()


def test_bars_are_the_attempts(watched: Watched, history: History) -> None:
    """A bar for each attempt; none crosses the death or overlaps another of its worker; tiles are their sums."""
    bars = watched.run(
        "Array.from({length: attemptCount}, (_, bar) => [worker[bar], begin[bar], end[bar], kind[bar], depth[bar]])"
    )
    attempts = [attempt for step in history.steps for attempt in step.attempts]
    assert len(bars) == len(attempts) == sum(history.totals.attempts.values())
    died = watched.run("data.runs[0].end")
    interrupted = [bar for bar in bars if bar[3] == 4]
    assert len(interrupted) == history.totals.attempts[Outcome.INTERRUPTED] >= 1
    assert all(bar[2] == died for bar in interrupted)
    assert not [bar for bar in bars if bar[1] < died < bar[2]]
    for lane in range(history.totals.workers):
        own = sorted(bar[1:3] for bar in bars if bar[0] == lane and not bar[4])
        assert all(before[1] <= after[0] for before, after in pairwise(own))
    assert sum(bar[2] - bar[1] for bar in bars) / 1000 == pytest.approx(history.totals.work, abs=0.001 * len(bars))
    waits = watched.run("Array.from(end, (time, bar) => (isAttempt(bar) ? 0 : time - begin[bar]))")
    assert sum(waits) / 1000 == pytest.approx(sum(history.totals.waited.values()), abs=0.001 * len(waits) + 0.001)


@pytest.mark.parametrize("steps", [5_000, 100_000])
def test_large_histories_are_quick(steps: int, browser: Any, tmp_path: Path) -> None:
    """The file is below 2 MB, ready in 1.5 s, frames take less than 16 ms in the middle, and the page stays small."""
    path = tmp_path / "large.html"
    path.write_text(timeline_page(made_history(steps), utc=True))
    assert path.stat().st_size < 2_000_000
    watched = Watched(browser, path)
    ready = watched.run("performance.getEntriesByName('timeline-ready')[0].duration")
    assert ready < 1500
    # The least of five times: what a busy machine does to the others says nothing of the page.
    frames = watched.run(
        """Array.from({length: 40}, (_, n) => {
             zoom(n < 20 ? 0.75 : 1 / 0.75, 300 + 20 * n);
             return Math.min(...Array.from({length: 5}, () => {
               const began = performance.now();
               draw();
               return performance.now() - began;
             }));
           }).sort((a, b) => a - b)"""
    )
    assert frames[20] < 16
    assert frames[-1] < 33
    filtered = watched.run(
        """['over', 'nothing has this', ''].map((words) => {
             byId('search').value = words;
             const began = performance.now();
             filter();
             draw();
             return performance.now() - began;
           })"""
    )
    assert max(filtered) < 700
    assert watched.run("document.querySelectorAll('*').length") < 3000
    assert watched.run("document.querySelectorAll('.grid.row').length") < 60
    assert watched.faults == []
    watched.context.close()


def _luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_apart(scheme: str, browser: Any, file: Path) -> None:
    """Texts have a contrast of 4.5 with what they stand on, and the edges of bars one of 3 with the card."""
    watched = Watched(browser, file, color_scheme=scheme)
    paints = watched.run("paint")
    assert set(paints) == {"ok", "bad", "try", "lim", "cut", "run", "back", "key"}
    colours = watched.run("colour")
    for name, paint in paints.items():
        assert contrast(paint["ink"], paint["fill"]) >= 4.5, name
        assert contrast(paint["edge"], colours["card"]) >= 3, name
    for ground in ("bg", "card"):
        assert contrast(colours["ink"], colours[ground]) >= 4.5
        assert contrast(colours["mute"], colours[ground]) >= 4.5
    watched.context.close()


def test_a_narrow_screen_needs_no_scrolling_sideways(browser: Any, file: Path) -> None:
    """At 420 pixels nothing is wider than the page, with details open too."""
    watched = Watched(browser, file, viewport={"width": 420, "height": 800})
    watched.run("moveToFailure(1)")
    assert watched.run("document.documentElement.scrollWidth") <= 420
    watched.context.close()


def test_a_frame_of_a_notebook_runs_the_script(browser: Any, store: Store, history: History, tmp_path: Path) -> None:
    """In a notebook's frame, which has no origin, the script runs and sees all bars."""
    page = tmp_path / "notebook.html"
    page.write_text(f"<!DOCTYPE html><meta charset=utf-8>{Timeline(store, WORKFLOW, history.now)._repr_html_()}")
    context = browser.new_context()
    tab = context.new_page()
    faults: list[str] = []
    tab.on("console", lambda message: faults.append(message.text))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.goto(page.as_uri())
    frame = tab.frames[1]
    frame.wait_for_function("performance.getEntriesByName('timeline-ready').length")
    assert frame.evaluate("attemptCount") == sum(history.totals.attempts.values())
    frame.evaluate("moveToFailure(1)")
    assert frame.evaluate("document.querySelector('#panel').hidden") is False
    order = [frame.locator(name).bounding_box()["y"] for name in ("#timeline", ".fail")]
    assert order == sorted(order)
    assert faults == []
    context.close()


def test_a_hidden_frame_is_drawn_when_it_is_shown(browser: Any, tmp_path: Path) -> None:
    """A notebook may give its frame a place only later: until then the page has no width."""
    (tmp_path / "made.html").write_text(timeline_page(made_history(40), utc=True))
    page = tmp_path / "hidden.html"
    page.write_text("<!DOCTYPE html><div hidden><iframe width=900 height=700 src=made.html></iframe></div>")
    context = browser.new_context()
    tab = context.new_page()
    faults: list[str] = []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.goto(page.as_uri())
    frame = tab.frames[1]
    # Asked again and again: a hidden frame calls nothing back.
    wait_until(lambda: frame.evaluate("performance.getEntriesByName('timeline-ready').length"))
    assert frame.evaluate("width") == 0
    tab.evaluate("document.querySelector('div').hidden = false")
    wait_until(lambda: frame.evaluate("overview.width") > 300)
    assert faults == []
    context.close()


def test_a_name_may_be_anything(browser: Any, tmp_path: Path) -> None:
    """Names that end the data, the script or the page's structure show as they are."""
    for number, name in enumerate(["</script>", "<!--<script>", "]]>", "__proto__", "\ud800", "a\nb", "'\"&amp;"]):
        path = tmp_path / f"{number}.html"
        path.write_text(timeline_page(renamed(made_history(40), name), utc=True))
        watched = Watched(browser, path)
        shown = {"\ud800": "\\ud800", "a\nb": "a\\nb"}.get(name, name)
        assert watched.run("nameOf(0)") == shown
        watched.run("chooseStep(0)")
        assert watched.text("#panel h2").strip().endswith(shown)
        assert watched.faults == []
        watched.context.close()


def test_a_running_workflow_shows_what_it_does(browser: Any, tmp_path: Path) -> None:
    """A file that is written again has a section of what runs, and a browser reads it again."""
    history = made_history(60, is_alive=True)
    path = tmp_path / "live.html"
    path.write_text(timeline_page(history, utc=True, every=1, tails={history.steps[-1].name: "one\nReading the diff"}))
    watched = Watched(browser, path)
    assert "Reading the diff" in watched.text(".now")
    loaded = threading.Event()
    watched.page.on("load", lambda _: loaded.set())
    watched.page.wait_for_event("load", timeout=10_000)
    assert loaded.is_set()
    watched.context.close()
