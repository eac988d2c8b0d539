"""What a type checker must accept, and what it must not: each ignore here is an error that has to be one."""

from __future__ import annotations

from concurrent.futures import Future
from typing import assert_type

from iso_orchestrator import ForEachSummary, Retry, Workflow, step

workflow = Workflow("types")


@workflow.step
def plain(page: int, *, size: str = "a") -> list[str]:
    return [size] * page


@workflow.step(name="fetch:{page}", retry=Retry(attempts=2, on=TimeoutError))
def configured(page: int) -> dict[str, int]:
    return {"page": page}


@step
def free(page: int) -> int:
    return page


@workflow.for_each(max_parallel=2)
@workflow.step
def fan_out(page: int, prefix: str) -> str:
    return prefix + str(page)


assert_type(plain(1, size="b"), list[str])
assert_type(plain.submit(1), Future[list[str]])
assert_type(plain.step_name(1), str)
assert_type(plain.fn(1), list[str])
assert_type(configured(1), dict[str, int])
assert_type(free(1), int)
assert_type(fan_out([1, 2], "p"), ForEachSummary[str])
assert_type(workflow.run_step("add", lambda: 1), int)
assert_type(workflow.run(lambda w: w.workflow_id).value, str)

plain("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
plain()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
plain.submit(page="x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
configured(size=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
fan_out(["1"], "p")  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
fan_out([1], 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
workflow.step(retries=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
Workflow("x", on_busy="queue")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
