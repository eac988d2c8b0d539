"""A baseline: sqlite3 in WAL mode, synchronous FULL (its default), one row and one transaction a step."""

from __future__ import annotations

import json
import sqlite3
import threading

from peers.protocol import Result, Task, Work, serve


def run(task: Task, work: Work) -> None:
    database = sqlite3.connect(
        task.folder / "steps.db", isolation_level=None, check_same_thread=False, timeout=task.limit
    )
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("CREATE TABLE IF NOT EXISTS steps (name TEXT PRIMARY KEY, result TEXT)")
    lock = threading.Lock()

    def step(number: int) -> Result:
        name = f"job({number})"
        with lock:
            found = database.execute("SELECT result FROM steps WHERE name = ?", (name,)).fetchone()
        if found is not None:
            return json.loads(found[0])
        result = task.body(number)
        with lock:
            database.execute("INSERT INTO steps VALUES (?, ?)", (name, json.dumps(result)))
        return result

    work(step)
    database.close()


if __name__ == "__main__":
    serve(run)
