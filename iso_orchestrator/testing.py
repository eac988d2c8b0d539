"""For tests of programs that use this package: records in memory, a clock that the test moves, and crashes."""

from __future__ import annotations

import os
import signal
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from tempfile import TemporaryDirectory

from iso_orchestrator.errors import WorkflowUsageError
from iso_orchestrator.runtime.context import current_scope
from iso_orchestrator.store import Store, stores_replaced
from iso_orchestrator.store.memory import MemoryStore

__all__ = ["FakeClock", "crash_here", "in_memory"]

_VARIABLE = "ISO_ORCHESTRATOR_CRASH_AT"


@contextmanager
def in_memory() -> Iterator[None]:
    """Keep the records of all workflows of this process in memory, and begin with none.

    That holds for workflows that exist already, as those of a module that was imported before, for any `dir=` and
    `store=`, and for `read_workflow_record`, `list_workflows`, `delete_workflow` and the command line's `main()`. The
    output of commands is in a temporary folder, except for those with a `log_dir=`. At the end of the block all is
    dropped, and each workflow has its own record again. Work that other threads go on with after the block uses that
    one: wait for it inside, as the end of a ``with workflow:`` does. Blocks may be nested. Other processes do not see
    the records: tests of kills need files, in a folder such as pytest's `tmp_path`.

    Raises:
        WorkflowUsageError: Inside of a run, which has its record already.

    Example:
        >>> from iso_orchestrator import Workflow, list_workflows
        >>> workflow = Workflow("batch")
        >>> with in_memory():
        ...     workflow.run_step("answer", lambda: 42), len(list_workflows())
        (42, 1)
        >>> with in_memory():
        ...     len(list_workflows())
        0

        For each test of a project, in `conftest.py`::

            @pytest.fixture(autouse=True)
            def records_in_memory():
                with in_memory():
                    yield
    """
    if runs := current_scope().runs:
        raise WorkflowUsageError(
            f"in_memory() inside of a run of workflow {runs[-1].runtime.workflow_id!r}: begin it before the run"
        )
    stores: dict[Hashable, MemoryStore] = {}
    with TemporaryDirectory(prefix="iso-orchestrator-", ignore_cleanup_errors=True) as folder:

        def replace(store: Store) -> Store:
            found = stores.get(store.identity)
            return found or stores.setdefault(store.identity, MemoryStore(store.display_name, folder))

        with stores_replaced(replace):
            yield


class FakeClock:
    """A clock that stands still until it is moved: ``Workflow(..., now=FakeClock())``.

    It decides the times of the record, and when a lease, a limit (`Limited`) or a result (`max_age=`) ends. What waits
    for one of them looks at the clock at least once a second: move it in another thread. Time-outs, pauses between
    attempts and beats in the background are real time.

    Args:
        start: The first time, aware.

    Raises:
        ValueError: The time is naive.

    Example:
        >>> from iso_orchestrator import Workflow, lease_status
        >>> clock = FakeClock(datetime(2026, 1, 1, tzinfo=UTC))
        >>> workflow = Workflow("batch", store="memory://clock", now=clock)
        >>> lease = workflow.touch_lease("printer", holder="a", ttl=30)
        >>> clock.advance(31)
        >>> str(lease_status(lease, clock())), workflow.touch_lease("printer", holder="b", ttl=30).holder
        ('expired', 'b')
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self.set(start)

    def __call__(self) -> datetime:
        """The time."""
        return self._now

    def advance(self, by: float | timedelta) -> None:
        """Move the clock by seconds, or a `timedelta`; below zero, back."""
        self._now += by if isinstance(by, timedelta) else timedelta(seconds=by)

    def set(self, moment: datetime) -> None:
        """Set the clock to an aware time."""
        if moment.utcoffset() is None:
            raise ValueError("the time is a naive datetime: give it a zone, as in datetime(2026, 1, 1, tzinfo=UTC)")
        self._now = moment


def crash_here(place: str | None = None) -> None:
    """Kill this process (SIGKILL) as a crash would: nothing is cleaned up, and no ``finally`` runs.

    Args:
        place: A name. The process is killed only if the environment's ``ISO_ORCHESTRATOR_CRASH_AT`` is that name, so
            that the call may stay in the program. None: in any case.

    Example:
        A program with ``crash_here("paid")`` after its payment is tried thus::

            killed = subprocess.run(program, env={**os.environ, "ISO_ORCHESTRATOR_CRASH_AT": "paid"})
            assert killed.returncode == -signal.SIGKILL
            subprocess.run(program, check=True)  # continues after the crash
    """
    if place is None or os.environ.get(_VARIABLE) == place:
        os.kill(os.getpid(), signal.SIGKILL)
