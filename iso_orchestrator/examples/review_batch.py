"""Reviews by a coding agent over the items of a file: two at a time, one at a time for each repository.

Kill it, run it again, and it continues: finished reviews are not paid for twice, an agent that was left running is
ended before its review begins again, and its session is resumed.

Example:
    python -m iso_orchestrator.examples.review_batch                        # a stand-in agent, no account
    python -m iso_orchestrator.examples.review_batch items.tsv --agent claude --results reviews.jsonl
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from iso_orchestrator import CommandResult, ForEachSummary, Fulfilled, Workflow
from iso_orchestrator.agents import Agent, AgentCommand, AgentResult, Claude, Codex, OpenCode, last_session, stand_in
from iso_orchestrator.checks import escape_terminal

Item = dict[str, str]

SAMPLE: list[Item] = [
    {"repository": repository, "subject": subject}
    for repository, subjects in {
        "shop": ["the cart forgets its coupon", "sessions never end", "prices are floats"],
        "mailer": ["retries send twice", "the queue has no limit"],
        "site": ["the menu is not read aloud"],
    }.items()
    for subject in subjects
]

_SHOWN = 80  # characters of a review

PROMPT = "Review the change {subject!r} in the repository {repository}. Answer in three sentences."

AGENTS: dict[str, Agent] = {
    # A review only reads, and so needs no permission.
    "claude": Claude(args=["--permission-mode", "plan"], allow_refusals={"ExitPlanMode"}),
    "codex": Codex(args=["--sandbox", "read-only"]),
    "opencode": OpenCode(),
    "stand-in": Claude(program=[sys.executable, "-I", stand_in.__file__, "claude"]),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Review all items.

    Returns:
        The exit code: 0; 1 when a review failed; 130 after Ctrl-C.

    Raises:
        SystemExit: The file of items cannot be used (1), or wrong usage (2).
    """
    options = _parser().parse_args(argv)
    items = SAMPLE if options.items is None else _read(options.items)
    if not options.results.absolute().parent.is_dir():
        _refuse(f"{options.results}: no such folder")
    workflow = Workflow(f"review-batch {options.items or 'sample'} {options.agent}", dir=options.dir)
    try:
        summary = _review_all(workflow, AGENTS[options.agent], items, options.parallel)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return 130
    rows = list(_rows(items, summary))
    options.results.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    print("\n".join(map(_line, rows)))
    print(f"\n{summary.fulfilled} of {len(items)} reviewed, all of them in {escape_terminal(str(options.results))}")
    return 1 if summary.rejected else 0


def _review_all(
    workflow: Workflow, agent: Agent, items: list[Item], parallel: int
) -> ForEachSummary[CommandResult[AgentResult]]:
    @workflow.for_each(max_parallel=parallel, mutex_key="{item[repository]}", stop_on_error=False)
    @workflow.command(
        name="review:{item[repository]}:{item[subject]}", parse=agent, timeout=1800, idle_timeout=600, retry=2
    )
    def review(item: Item) -> AgentCommand:
        return agent.command(PROMPT.format(**item), cwd=item.get("folder"), resume=last_session())

    with workflow:
        return review(items)


def _read(path: Path) -> list[Item]:
    """The items of a file of JSON lines, or of tab-separated values with a line of names."""
    try:
        text = path.read_text(encoding="utf-8")
        rows = _json_lines(text) if path.suffix == ".jsonl" else csv.DictReader(io.StringIO(text), delimiter="\t")
        items = list(rows)
    except (OSError, ValueError, csv.Error) as error:
        _refuse(f"{path}: {error}")
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict) or not all(isinstance(text, str) for text in (*item, *item.values())):
            _refuse(f"{path}: item {number} has a value that is no text, or more or fewer values than there are names")
        missing = [key for key in ("repository", "subject") if not item.get(key, "").strip()]
        if missing:
            _refuse(f"{path}: item {number} has no {' and no '.join(missing)}")
    return items


def _json_lines(text: str) -> Iterator[Item]:
    for number, line in enumerate(text.split("\n"), 1):
        try:
            if line.strip():
                yield json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is no JSON: {error}") from error


def _refuse(reason: str) -> NoReturn:
    raise SystemExit(f"review_batch: {escape_terminal(reason)}")


def _rows(items: list[Item], summary: ForEachSummary[CommandResult[AgentResult]]) -> Iterator[dict[str, object]]:
    for item, result in zip(items, summary.results, strict=True):
        if isinstance(result, Fulfilled):
            run = result.value.parsed
            yield {**item, "outcome": run.outcome, "review": run.text, "cost_usd": run.cost_usd}
        else:
            yield {**item, "outcome": "failed", "error": str(result.reason)}


def _line(row: dict[str, object]) -> str:
    said = str(row.get("review") or row.get("error"))
    text = escape_terminal(f"{row['repository']}: {row['subject']}: {row['outcome']}: {said[:_SHOWN]}")
    return text if len(said) <= _SHOWN else f"{text}..."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m iso_orchestrator.examples.review_batch",
        description="Have an agent review the items of a file; killed and started again, it continues.",
    )
    parser.add_argument(
        "items", nargs="?", type=Path, metavar="FILE", help=".jsonl, or .tsv with the columns repository and subject"
    )
    parser.add_argument("--agent", choices=sorted(AGENTS), default="stand-in", help="default: %(default)s")
    parser.add_argument(
        "--parallel", type=_count, default=2, metavar="N", help="agents at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("reviews.jsonl"), metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument("--dir", default=".iso-orchestrator", metavar="DIR", help="default: %(default)s")
    return parser


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise ValueError(text)
    return count


if __name__ == "__main__":
    raise SystemExit(main())
