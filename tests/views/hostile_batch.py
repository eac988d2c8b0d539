"""A batch of some 70 steps with all that a timeline shows, and with texts that try to be markup.

`python hostile_batch.py FOLDER` kills itself midway; the second call of it continues, and ends with failures.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from iso_orchestrator import Command, Limited, Retry, Workflow, current_step
from iso_orchestrator.agents import Claude, stand_in

WORKFLOW = "nightly <reviews> 2026-11-28"
MARKUP = "</script><script>alert(1)</script>"
IMAGE = "<img src=x onerror=alert(document.domain)>"
TURNED = "\u202etxt.exe\u202c & \"quotes\" 'n' `ticks`"
FAMILY = "絵文字 \U0001f468\u200d\U0001f469\u200d\U0001f467 で幅がずれる"
REPOSITORIES = ["shop", "mailer", "docs", "billing", "ledger", "日本語サイト", "mobile", "site"]
SUBJECTS = [MARKUP, IMAGE, TURNED, FAMILY, "the cart forgets its coupon", "time zones at midnight", "an unbounded read"]
ITEMS = [{"repository": repository, "subject": subject} for subject in SUBJECTS for repository in REPOSITORIES]
KILLED_AT = 25  # the item that kills its process
LOG = f"{IMAGE}\x1b[31m\nfatal: unable to access 'origin': {MARKUP}\n"

_begun: Counter[str] = Counter()
_lock = threading.Lock()


def main(folder: Path) -> None:
    workflow = Workflow(WORKFLOW, dir=folder)
    flag = folder / "killed"

    @workflow.step(name="fetch:{repository}")
    def fetch(repository: str) -> dict[str, Any]:
        time.sleep(0.01)
        return {"repository": repository, "head": "4f2a91c", "note": MARKUP}

    @workflow.for_each(max_parallel=4, mutex_key="{item[repository]}", stop_on_error=False)
    @workflow.step(
        name="review:{item[repository]}:{item[subject]}",
        retry=Retry(3, wait=0.08, on=(ValueError, ConnectionError)),
        limit_key="claude",
    )
    def review(item: dict[str, str]) -> str:
        number = ITEMS.index(item)
        attempt = current_step().attempt
        time.sleep(0.03 + 0.03 * (number % 4))
        if number == KILLED_AT and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number in (7, 14, 21, 33, 40, 46) and attempt == 1:
            raise ConnectionError(f'API Error: 529 {{"type":"overloaded_error","request":{number}}}')
        if number in (2, 28):
            raise ValueError(f"Prompt is too long: {214_331 + number} tokens > 200000 maximum {IMAGE}")
        if number == 44 and not (folder / "limited").exists():
            (folder / "limited").touch()
            raise Limited(datetime.now(UTC) + timedelta(seconds=1.2), "claude")
        return f"The change is sound. {MARKUP}"

    agent = Claude(program=[sys.executable, "-I", stand_in.__file__, "claude"])

    @workflow.command(name="summarise:{part}", parse=agent, retry=2)
    def summarise(part: str) -> Any:
        return agent.command(f"Summarise {part}")

    @workflow.command(name="push:{branch}")
    def push(branch: str) -> Command:
        code = f"import sys; sys.stdout.write({LOG!r}); sys.exit(128)"
        return Command([sys.executable, "-I", "-c", code])

    with workflow:
        for repository in REPOSITORIES:
            fetch(repository)
        review(ITEMS)
        summarise("shop")
        summarise(IMAGE)
        try:
            push("main")
        except Exception as error:
            print(error, file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
