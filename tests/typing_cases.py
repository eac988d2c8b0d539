"""Code that type checkers must accept, and errors that they must report: each ignore marks one of those."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, assert_type

import iso_orchestrator
from iso_orchestrator import CommandResult, ForEachSummary, Retry, Workflow, command, for_each, step
from iso_orchestrator.agents import AgentCommand, AgentResult, Claude

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


@workflow.command(timeout=60, parse=len, retry=2)
def counted(page: int) -> list[str]:
    return ["echo", str(page)]


@workflow.command
def bare(page: int) -> list[str]:
    return ["echo", str(page)]


@command(parse="json", idle_timeout=5)
def loose() -> list[str]:
    return ["echo", "1"]


claude = Claude()


@workflow.for_each(max_parallel=2)
@workflow.command(parse=claude)
def ask(page: int) -> AgentCommand:
    return claude.command(f"Read page {page}.")


@workflow.for_each(max_parallel=2)
@workflow.step
def fan_out(page: int, prefix: str) -> str:
    return prefix + str(page)


class Shop:
    @workflow.step
    def price(self, page: int) -> float:
        return page / 2

    @classmethod
    @workflow.step
    def town(cls, page: int) -> str:
        return cls.__name__ * page

    @workflow.step(retry=2)
    @classmethod
    def street(cls, page: int) -> str:
        return cls.__name__ * page

    @staticmethod
    @workflow.step
    def country(page: int) -> str:
        return "de" * page

    @workflow.step
    @staticmethod
    def planet(page: int) -> str:
        return "earth" * page

    @workflow.for_each()
    @workflow.step
    def prices(self, page: int, size: str = "a") -> float:
        return page / 2

    @workflow.for_each()
    @classmethod
    def towns(cls, page: int) -> str:
        return cls.__name__ * page


assert_type(Shop.town(1), str)
assert_type(Shop().town(1), str)
assert_type(Shop.street(1), str)
assert_type(Shop().street.submit(1), Future[str])
assert_type(Shop.country(1), str)
assert_type(Shop().country(1), str)
assert_type(Shop.planet(1), str)
assert_type(Shop().planet(1), str)
assert_type(Shop().prices([1, 2], size="b"), ForEachSummary[float])
assert_type(Shop.towns([1, 2]), ForEachSummary[str])
assert_type(Shop().price(1), float)
assert_type(Shop().price.submit(page=1), Future[float])
assert_type(plain(1, size="b"), list[str])
assert_type(plain.submit(1), Future[list[str]])
assert_type(plain.step_name(1), str)
assert_type(plain.fn(1), list[str])
assert_type(configured(1), dict[str, int])
assert_type(free(1), int)
assert_type(fan_out([1, 2], "p"), ForEachSummary[str])
assert_type(counted(1), CommandResult[int])
assert_type(counted.submit(1), Future[CommandResult[int]])
assert_type(bare(page=1), CommandResult[Any])
assert_type(loose().parsed, Any)
assert_type(ask([1, 2]), ForEachSummary[CommandResult[AgentResult]])
assert_type(workflow.run_step("add", lambda: 1), int)
assert_type(workflow.run(lambda w: w.workflow_id).value, str)

Shop().price("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
counted("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
workflow.command(parse="xml")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
plain("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
plain()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
plain.submit(page="x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
configured(size=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
fan_out(["1"], "p")  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
fan_out([1], 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
workflow.step(retries=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
workflow.step(retry="3")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
step(timeout="3")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
step(retries=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
command(retries=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
workflow.run_step("add", lambda: 1, retries=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
workflow.run_step("add", lambda: 1, version=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
workflow.for_each(max_parallel="2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
workflow.run_for_each([1], str, parallel=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
for_each(stop_on_errors=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Workflow("x", on_busy="queue")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
iso_orchestrator.Workflows("x")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
