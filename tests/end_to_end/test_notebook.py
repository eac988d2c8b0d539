"""In a real Jupyter kernel: cells run again, interrupted, inside of a running event loop; and what they show."""

from __future__ import annotations

import queue
import textwrap
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import wait_until

from iso_orchestrator import StepStatus, WorkflowStatus, read_workflow_record

jupyter_client = pytest.importorskip("jupyter_client", reason="needs the extra `test`: a kernel is started")
pytest.importorskip("ipykernel", reason="needs the extra `test`: a kernel is started")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client", "ignore::DeprecationWarning:zmq"),
]

PAUSE = 0.1  # seconds in which what should not happen would have happened
DEADLINE = 60.0  # seconds; a kernel's start is slow on a busy machine

SETUP = """
%xmode Minimal
import asyncio, os, signal, threading, time
from iso_orchestrator import *
"""


@attrs.define
class Output:
    """What a cell said.

    Attributes:
        status: "ok" or "error".
        error: The name of the error.
        text: Of standard output.
        aside: Of standard error.
        shown: By MIME type, what the last expression or `display` showed.
        updated: Likewise, what took the place of something shown.
        updates: The plain text of each of those.
    """

    status: str = ""
    error: str | None = None
    message: str = ""
    text: str = ""
    aside: str = ""
    shown: dict[str, Any] = attrs.field(factory=dict)
    updated: dict[str, Any] = attrs.field(factory=dict)
    updates: list[str] = attrs.field(factory=list)


class Kernel:
    """A kernel, and the cells that run in it."""

    def __init__(self, manager: Any, client: Any) -> None:
        self._manager = manager
        self._client = client

    def run(self, code: str) -> Output:
        """Run a cell to its end."""
        return self.finish(self.start(code))

    def good(self, code: str) -> Output:
        """Run a cell that has to end well."""
        output = self.run(code)
        assert output.status == "ok", f"{output.error}: {output.message}"
        return output

    def start(self, code: str) -> str:
        """Begin a cell."""
        request: str = self._client.execute(textwrap.dedent(code))
        return request

    def finish(self, request: str) -> Output:
        """Wait for a cell's end."""
        output = Output()
        end = time.monotonic() + DEADLINE
        while True:
            message = self._message(end)
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            match message["msg_type"]:
                case "stream" if content["name"] == "stdout":
                    output.text += content["text"]
                case "stream":
                    output.aside += content["text"]
                case "update_display_data":
                    output.updated = content["data"]
                    output.updates.append(content["data"]["text/plain"])
                case "execute_result" | "display_data":
                    output.shown = content["data"]
                case "error":
                    output.error, output.message = content["ename"], content["evalue"]
                case "status" if content["execution_state"] == "idle":
                    output.status = "error" if output.error else "ok"
                    return output

    def has_ended(self, seconds: float) -> bool:
        """Whether the running cell ends within *seconds*; what it says meanwhile is lost."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                message = self._client.get_iopub_msg(timeout=left)
            except queue.Empty:
                return False
            if message["msg_type"] == "error" or message["content"].get("execution_state") == "idle":
                return True
        return False

    def interrupt(self) -> None:
        """What the button with the square does."""
        self._manager.interrupt_kernel()

    def _message(self, end: float) -> dict[str, Any]:
        try:
            message: dict[str, Any] = self._client.get_iopub_msg(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            self._manager.interrupt_kernel()
            raise AssertionError(f"the cell did not end within {DEADLINE:g} s") from None
        return message


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One kernel for all tests, in a folder of its own."""
    home = tmp_path_factory.mktemp("kernel")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
            patch.setenv(name, str(home / name))
        patch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        manager, client = jupyter_client.manager.start_new_kernel(startup_timeout=DEADLINE, cwd=str(home))
    kernel = Kernel(manager, client)
    try:
        kernel.good(SETUP)
        yield kernel
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def kernel(started: Kernel, root: Path) -> Kernel:
    """The kernel, with a `root` of this test."""
    started.good(f"root = {str(root)!r}")
    return started


def until(path: Path) -> None:
    """Wait until a cell has made a file."""
    wait_until(path.exists, DEADLINE, what=path.name)


# Cells run again


def test_a_cell_that_is_run_again_runs_no_step_again(kernel: Kernel, root: Path) -> None:
    """Defining everything anew is fine, and what was completed is not done twice."""
    cell = """
        workflow = Workflow("again", dir=root)
        ran = globals().setdefault("ran", [])

        @workflow.step
        def fetch(page: int) -> int:
            ran.append(page)
            return page * 10

        @workflow.for_each(max_parallel=2)
        @workflow.step(name="apply:{job}")
        def apply(job: int) -> int:
            ran.append(-job)
            return job

        with workflow:
            print(fetch(1), fetch(2), sum(apply([1, 2, 3]).values()))
    """
    assert kernel.good("ran = []").status == "ok"
    assert [kernel.good(cell).text for _ in range(3)] == ["10 20 6\n"] * 3
    assert kernel.good("print(sorted(ran))").text == "[-3, -2, -1, 1, 2]\n"
    assert read_workflow_record("again", dir=root).status is WorkflowStatus.COMPLETED


def test_a_function_that_is_defined_again_takes_the_place_of_the_first(kernel: Kernel) -> None:
    """On one workflow object, too: the new body runs, where it has not run yet."""
    kernel.good("""
        workflow = Workflow("replaced", dir=root)
        @workflow.step(name="const")
        def step_one() -> str:
            return "old"
    """)
    cell = """
        @workflow.step(name="const")
        def step_one() -> str:
            return "new"
        step_one()
    """
    assert kernel.good(cell).shown["text/plain"] == "'new'"
    assert kernel.good(cell).shown["text/plain"] == "'new'"
    other = kernel.run("""
        @workflow.step(name="const")
        def step_two() -> str:
            return "other"
    """)
    assert other.error == "DuplicateStepError"


def test_a_cell_that_failed_goes_on_where_it_was(kernel: Kernel) -> None:
    """The error is shown, and the cell run again runs the rest."""
    kernel.good("broken, ran = True, []")
    cell = """
        def work(item):
            ran.append(item)
            if broken and item == 2:
                raise ValueError("broken at two")
            return item

        with Workflow("failed", dir=root) as workflow:
            summary = workflow.run_for_each(range(4), lambda item: workflow.run_step(str(item), work, item))
        print(summary.values(), ran)
    """
    failed = kernel.run(cell)
    assert (failed.error, failed.message.splitlines()[0]) == ("ValueError", "broken at two")
    kernel.good("broken = False")
    assert kernel.good(cell).text == "[0, 1, 2, 3] [0, 1, 2, 2, 3]\n"


def test_everything_works_without_a_with(kernel: Kernel, root: Path) -> None:
    """A notebook that never begins a run has steps, mutexes, leases and a state, over several cells."""
    kernel.good("workflow = Workflow('open', dir=root, initial_state={'n': 0})")
    kernel.good("workflow.run_step('a', lambda: 1)")
    kernel.good("with workflow.mutex('slot'), workflow.lease('lease', ttl=60):\n    workflow.append_event('inside')")
    kernel.good("workflow.update_state(lambda state: {'n': state['n'] + 1})")
    assert kernel.good("workflow.state").shown["text/plain"] == "{'n': 1}"
    kernel.good("workflow.close()")
    assert kernel.good("workflow.run_step('a', lambda: 2)").shown["text/plain"] == "1"
    kernel.good("workflow.close()")
    assert read_workflow_record("open", dir=root).status is WorkflowStatus.IDLE


# Interrupts


def test_an_interrupt_in_a_step_fails_it_and_it_runs_again(kernel: Kernel, root: Path) -> None:
    """The cell ends with KeyboardInterrupt, the record says so, and the cell run again completes the step."""
    cell = """
        def slow():
            open(f"{root}/in", "w").close()
            if not os.path.exists(f"{root}/quick"):
                time.sleep(3600)
            return "done"

        workflow = Workflow("interrupted", dir=root)
        with workflow:
            print(workflow.run_step("slow", slow, retry=3))
    """
    request = kernel.start(cell)
    until(root / "in")
    kernel.interrupt()
    assert kernel.finish(request).error == "KeyboardInterrupt"
    record = read_workflow_record("interrupted", dir=root)
    assert (record.status, record.steps["slow"].status) == (WorkflowStatus.FAILED, StepStatus.FAILED)
    assert record.steps["slow"].attempts == 1
    (root / "quick").touch()
    assert kernel.good(cell).text == "done\n"


def test_an_interrupt_in_a_step_without_a_with_is_no_different(kernel: Kernel, root: Path) -> None:
    """The same object goes on in the next cell."""
    kernel.good("workflow = Workflow('bare', dir=root)")
    request = kernel.start("""
        def slow():
            open(f"{root}/in", "w").close()
            time.sleep(3600)
        workflow.run_step("slow", slow)
    """)
    until(root / "in")
    kernel.interrupt()
    assert kernel.finish(request).error == "KeyboardInterrupt"
    assert kernel.good("workflow.run_step('slow', lambda: 'done')").shown["text/plain"] == "'done'"
    kernel.good("workflow.close()")


FOR_EACH = """
    def on_signal(*_):
        open(f"{root}/signal", "w").close()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_signal)  # for as long as the cell runs: the kernel sets its own for each

    def work(item):
        open(f"{root}/in {item}", "w").close()
        while not os.path.exists(f"{root}/go on"):
            time.sleep(0.002)
        return item

    workflow = Workflow("batch", dir=root)
    with workflow:
        summary = workflow.run_for_each(
            range(6), lambda item: workflow.run_step(str(item), work, item), max_parallel=2
        )
    print(summary.values())
"""


def test_an_interrupt_in_a_for_each_lets_running_items_finish(kernel: Kernel, root: Path) -> None:
    """They end and are recorded, nothing more starts, and the cell run again does the rest alone."""
    request = kernel.start(FOR_EACH)
    until(root / "in 0")
    until(root / "in 1")
    interrupt_and_see_it_go_on(kernel, root)
    (root / "go on").touch()
    assert kernel.finish(request).error == "KeyboardInterrupt"
    record = read_workflow_record("batch", dir=root)
    assert {name: str(step.status) for name, step in record.steps.items()} == {"0": "completed", "1": "completed"}
    assert not (root / "in 2").exists()
    for path in root.glob("in *"):
        path.unlink()
    assert kernel.good(FOR_EACH).text == "[0, 1, 2, 3, 4, 5]\n"
    assert sorted(path.name for path in root.glob("in *")) == ["in 2", "in 3", "in 4", "in 5"]


def interrupt_and_see_it_go_on(kernel: Kernel, root: Path) -> None:
    """Interrupt a cell, wait until it has arrived, and see that it does not end the cell for a while."""
    kernel.interrupt()
    until(root / "signal")
    assert not kernel.has_ended(PAUSE)


def test_a_second_interrupt_stops_waiting_for_them(kernel: Kernel, root: Path) -> None:
    """The cell ends at once; what still runs is recorded when it ends, and the cell run again does the rest."""
    request = kernel.start(FOR_EACH)
    until(root / "in 0")
    until(root / "in 1")
    interrupt_and_see_it_go_on(kernel, root)
    kernel.interrupt()
    assert kernel.finish(request).error == "KeyboardInterrupt"
    again = kernel.start(FOR_EACH)
    (root / "go on").touch()
    output = kernel.finish(again)
    assert (output.error, output.text) == (None, "[0, 1, 2, 3, 4, 5]\n")
    record = read_workflow_record("batch", dir=root)
    assert [step.attempts for step in record.steps.values()] == [1] * 6


def test_an_interrupt_in_a_wait_for_a_mutex_lets_go_of_it(kernel: Kernel, root: Path) -> None:
    """The cell that waited does not get it later."""
    kernel.good("""
        workflow = Workflow("mutex", dir=root)
        let_go = threading.Event()
        def hold():
            with workflow.mutex("slot"):
                open(f"{root}/held", "w").close()
                let_go.wait(60)
        holder = threading.Thread(target=hold)
        holder.start()
    """)
    until(root / "held")
    request = kernel.start("open(f'{root}/asks', 'w').close()\nwith workflow.mutex('slot'):\n    pass")
    until(root / "asks")
    assert not kernel.has_ended(PAUSE)
    kernel.interrupt()
    assert kernel.finish(request).error == "KeyboardInterrupt"
    kernel.good("let_go.set(); holder.join()\nwith workflow.mutex('slot', timeout=60):\n    print('had it')")
    kernel.good("workflow.close()")


# Inside of a running loop


def test_a_cell_runs_inside_of_a_loop_and_everything_works(kernel: Kernel) -> None:
    """Steps, batches, mutexes, leases, submitted steps: all plain calls, though a loop runs around the cell."""
    output = kernel.good("""
        loop = asyncio.get_running_loop()
        workflow = Workflow("loop", dir=root)

        @workflow.step
        def double(n: int) -> int:
            return 2 * n

        with workflow, workflow.mutex("slot"), workflow.lease("lease", ttl=60), workflow.heartbeating("beat"):
            summary = workflow.run_for_each(range(4), double, max_parallel=2, mutex_key=lambda n: str(n % 2))
            print(loop.is_running(), summary.values(), double.submit(9).result(60))
    """)
    assert output.text == "True [0, 2, 4, 6] 18\n"


def test_a_cell_may_await_inside_of_a_run(kernel: Kernel) -> None:
    """A run in a cell with `await` stays current over it, and blocking calls may go to threads."""
    output = kernel.good("""
        workflow = Workflow("awaits", dir=root)
        with workflow:
            await asyncio.sleep(0)
            print(current_workflow() is workflow)
            print(await asyncio.to_thread(workflow.run_step, "a", lambda: current_workflow().workflow_id))
    """)
    assert output.text == "True\nawaits\n"


# What is shown


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\" onmouseover='x' &lt; &amp; \x1b[31m\u202e{0} <!-- "


class Page(HTMLParser):
    """What a browser would make of a piece of HTML: its tags with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"{self.open} are not closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attributes))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError("a comment")

    @property
    def structure(self) -> list[str]:
        return [tag for tag, _ in self.tags]


SHOWN = """
    text = {text!r}
    shown = Workflow("shown" + text, dir=root, initial_state={{"state": text}})

    def show_fail(text):
        raise ValueError(text)

    shown.run_step("ok" + text, lambda: text)
    try:
        shown.run_step("fails" + text, show_fail, text)
    except ValueError:
        pass
    shown.append_event("event" + text, text, {{"detail": text}})
    shown.heartbeat("beat" + text, {{"detail": text}})
    shown.touch_lease("lease" + text, holder="holder" + text, ttl=60, detail=text)
    shown.set_status("failed", ValueError(text))
    record = shown.record
    summary = shown.run_for_each([text, 2], lambda item: item if item == text else show_fail(text), stop_on_error=False)
"""

VIEWS = {
    "the workflow": "shown",
    "its record": "record",
    "a step": "list(record.steps.values())[0]",
    "a failed step": "list(record.steps.values())[1]",
    "an event": "[event for event in record.events if event.message][0]",
    "a heartbeat": "list(record.heartbeats.values())[0]",
    "a lease": "list(record.leases.values())[0]",
    "an error": "record.last_error",
    "a for_each": "summary",
    "a workflow in a list": "list_workflows(dir=root)[0]",
}

# Attributes that can run or load something, besides those that begin with "on".
ACTIVE = {"action", "formaction", "href", "src", "srcdoc", "xlink:href"}


@pytest.mark.parametrize("view", VIEWS)
def test_what_is_shown_is_html_without_anything_active(kernel: Kernel, view: str) -> None:
    """Hostile texts are shown as texts: the structure is that of plain ones, and nothing in it can run."""
    pages = []
    for text in ("plain", HOSTILE):
        kernel.good(SHOWN.format(text=text))
        data = kernel.good(f"{VIEWS[view]}").shown
        assert "text/html" in data, f"{view} is shown as {sorted(data)}"
        pages.append(Page(data["text/html"]))
    plain, hostile = pages
    assert set(hostile.structure) == set(plain.structure)  # a drawing has more or fewer bars with a label
    assert "plain" in plain.text
    assert "<script>alert(1)</script>" in hostile.text
    for page in pages:
        names = {name for _, attributes in page.tags for name, _ in attributes}
        assert not {name for name in names if name.startswith("on")} | (names & ACTIVE)
        assert not {"script", "iframe", "object", "img", "a", "form", "link", "style"} & set(page.structure)
    assert "\x1b" not in hostile.text
    assert "\u202e" not in hostile.text


def test_a_record_shows_what_it_is_about(kernel: Kernel) -> None:
    """Name, status, numbers, and the steps that failed with their attempts and errors can be read."""
    kernel.good(SHOWN.format(text=" plain"))
    text = Page(kernel.good("record").shown["text/html"]).text
    for part in ("shown plain", "✕ failed", "1 of 2 steps", "2 attempts", "fails plain", "ValueError: "):
        assert part in text


def test_a_summary_shows_each_item(kernel: Kernel) -> None:
    """Counts, values and reasons can be read."""
    kernel.good(SHOWN.format(text=" plain"))
    text = Page(kernel.good("summary").shown["text/html"]).text
    for part in ("1 fulfilled", "1 rejected", " plain", "ValueError"):
        assert part in text


def test_showing_a_workflow_that_is_not_there_makes_nothing(kernel: Kernel, root: Path) -> None:
    """A look in a notebook is a look."""
    data = kernel.good("Workflow('nowhere', dir=root + '/new')").shown
    assert "nowhere" in Page(data["text/html"]).text
    assert list(root.iterdir()) == []


def test_a_long_record_is_shown_cut(kernel: Kernel) -> None:
    """Thousands of items or steps do not fill the page, and the cut is told."""
    kernel.good("""
        many = Workflow("many", dir=root)
        summary = many.run_for_each(range(1000), lambda item: many.run_step(f"step {item}", lambda: item))
    """)
    for what in ("many", "summary"):
        page = Page(kernel.good(what).shown["text/html"])
        assert len(page.structure) < 300
        assert "1000" in page.text
    assert "shown" in page.text


def test_progress_is_shown_in_a_notebook(kernel: Kernel) -> None:
    """Without being asked for, with the label that was given, and not where it is unwanted."""
    kernel.good("workflow = Workflow('progress', dir=root)")
    output = kernel.good("_ = workflow.run_for_each(range(3), str, progress='my <label>', max_parallel=2)")
    assert output.aside == ""
    assert output.shown["text/plain"].startswith("my <label>: 0 of 3 done")
    assert output.updated["text/plain"].startswith("my <label>: 3 of 3 done")
    assert output.updated["text/html"].startswith('<progress max="3" value="3"></progress> my &lt;label&gt;: 3 of 3')
    assert "3 of 3" in kernel.good("_ = workflow.run_for_each(range(3), str)").updated["text/plain"]
    assert kernel.good("_ = workflow.run_for_each(range(3), str, progress=False)").shown == {}


def test_progress_is_drawn_by_the_threads_of_a_notebook(kernel: Kernel) -> None:
    """Items that end in other threads move the bar of the cell that called them."""
    output = kernel.good("""
        workflow = Workflow("threads", dir=root)
        _ = workflow.run_for_each(range(4), lambda _: time.sleep(0.4), max_parallel=2)
    """)
    counts = [words.split()[1] for words in output.updates]
    assert counts == sorted(counts)
    assert counts[-1] == "4"
    assert {"2", "3"} & set(counts)
