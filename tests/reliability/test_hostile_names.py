"""Row 19: no id and no key, whatever is in it, reaches a path outside of the root or another's record."""

from __future__ import annotations

import os
import random
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from reliability.tiers import Figures, Tier
from support import WatchedFS, at, new_fold, put, run_python, tree

from iso_orchestrator import FileStore, MutexTimeoutError, Workflow, delete_workflow, list_workflows
from iso_orchestrator.record import facts as f
from iso_orchestrator.store.names import mutex_file_name, record_names
from iso_orchestrator.system.filesystem import FileSystem

REFUSED = ["", " ", "\t\n ", "\u2003", "\ud800", "a\udfff", "\udc80.json"]

HOSTILE = [
    ".",
    "..",
    "...",
    "../../x",
    "..\\..\\x",
    "/etc/passwd",
    "/",
    "//host/share",
    "C:\\x",
    "C:x",
    "\\\\?\\C:\\x",
    "~",
    "~root/x",
    "$HOME",
    "%TEMP%",
    "a/../../b",
    "a\0b",
    "\0",
    "a\nb",
    "a\r\nb",
    "-rf",
    "--",
    "*",
    "?",
    "[a-z]",
    "|ls",
    "`id`",
    ";",
    "&",
    '"',
    "'",
    "<x>",
    ":",
    "a:b",
    "file::$DATA",
    "é",
    "e\u0301",
    "ﬁ",
    "fi",
    "ß",
    "ss",
    "SS",
    "İ",
    "i̇",
    "\u0131",
    "A",
    "a",
    "Å",
    "Å",
    "\u202egnp.exe",
    "\u200b",
    "a\u200b",
    "\ufeff",
    "\x1b[31m",
    "😀",
    "CON",
    "con",
    "con.txt",
    "NUL",
    "COM1",
    "LPT1.journal",
    "aux",
    "a.",
    "a. ",
    " a",
    "a ",
    "a",
    ".gitignore",
    "workflows",
    "locks",
    "_store",
    "record.flock",
    "w.json",
    "w.journal",
    "w.torn-1",
    "w-aff024fe",
    "w-aff024fe.json",
    "w",
    "x" * 255,
    "x" * 256,
    "x" * 10_000,
    "é" * 128,
    "/" * 10_000,
    "../" * 3_000,
    "." * 300,
]
IDS = list(dict.fromkeys(HOSTILE))

_NAME = re.compile(r"[a-z0-9._-]{1,100}")
_ALPHABET = [
    "a",
    "A",
    "b",
    ".",
    "..",
    "/",
    "\\",
    "\0",
    "\n",
    " ",
    "-",
    "_",
    "é",
    "e\u0301",
    "ß",
    "\u017f",
    "\u212a",
    "k",
    "😀",
    ":",
]


@pytest.fixture
def home(memory_path: Path) -> Iterator[Path]:
    """A folder around the root, in memory where there is such a one, with things in it that are nobody's business."""
    home = memory_path / "around" / "home"
    home.mkdir(parents=True)
    for name in ("x", "..x", "w.json", "root.json", "roo", "root2"):
        (home / name).write_text("not ours")
        (home.parent / name).write_text("not ours")
    yield home


def outside(home: Path) -> dict[str, Any]:
    """All that is around the root, and not in it."""
    return {path: told for path, told in tree(home.parent).items() if not path.startswith("home/root/")}


def generated(rng: random.Random, count: int) -> list[str]:
    """Texts of the kinds that file systems mistake for each other or for a way out; no two are equal."""
    found: dict[str, None] = {}
    while len(found) < count:
        kind = rng.random()
        if kind < 0.6:
            text = "".join(rng.choices(_ALPHABET, k=rng.choice([1, 2, 3, 5, 8, 50])))
        elif kind < 0.8:
            text = "".join(chr(_code_point(rng)) for _ in range(rng.choice([1, 2, 4, 300])))
        else:
            text = rng.choice([str.upper, str.lower, str.swapcase, _decomposed, _composed])(rng.choice(IDS))
        if text.strip():
            found[text] = None
    return list(found)


def _code_point(rng: random.Random) -> int:
    code = rng.choice([rng.randrange(0x80), rng.randrange(0x3000), rng.randrange(0x110000)])
    return code if not 0xD800 <= code < 0xE000 else 0x2F


def _decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


# Their stems and the first 8 digits of their hashes are equal: the npm package gives them one file name.
EQUAL_STEMS = ["x?!?$!?$????", "x??!%%!!?!?%", "x???!%!?$$!!?"]


class FoldingFS(FileSystem):
    """A file system for which names that look alike are one, as for those of macOS and Windows.

    It folds case, composes what is decomposed, and drops dots and spaces at the end.
    """

    def __init__(self, root: str) -> None:
        self._root = root

    def folded(self, path: str) -> str:
        within = os.path.relpath(path, self._root)
        if within == "." or within.startswith(".."):
            return path
        parts = [unicodedata.normalize("NFC", part).casefold().rstrip(". ") for part in within.split(os.sep)]
        return os.path.join(self._root, *parts)


def _folding(name: str) -> Callable[..., Any]:
    real = getattr(FileSystem, name)

    def call(self: FoldingFS, *args: Any) -> Any:
        return real(self, *[self.folded(arg) if isinstance(arg, str) else arg for arg in args])

    return call


for _method in [name for name in vars(FileSystem) if not name.startswith("_")]:
    setattr(FoldingFS, _method, _folding(_method))


def use(workflow_id: str, store: FileStore, *, keys: bool = True) -> None:
    """Write something under that id that is only its own, with the id as each kind of key."""
    workflow = Workflow(workflow_id, store=store, initial_state={"id": workflow_id})
    workflow.run_step(workflow_id, lambda: workflow_id)
    if keys:
        with workflow.mutex(workflow_id), workflow.mutex(workflow_id, scope="store"):
            workflow.heartbeat(workflow_id)
        workflow.touch_lease(workflow_id, holder=workflow_id, ttl=60)
        workflow.append_event(workflow_id, workflow_id)
    workflow.close()


def assert_own(workflow_id: str, store: FileStore) -> None:
    """What is read under that id is what was written under it, and nothing else."""
    record = Workflow(workflow_id, store=store).record
    assert record.workflow_id == workflow_id
    assert record.state == {"id": workflow_id}, f"{workflow_id!r:.80} has what is {record.state['id']!r:.80}'s"
    assert [(step.name, step.result) for step in record.steps.values()] == [(workflow_id, workflow_id)]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_id_is_refused_at_once(tmp_path: Path, text: str) -> None:
    """Blank texts and lone surrogates are no ids and no keys, and nothing is made for them."""
    with pytest.raises(ValueError, match=r"must not be empty or blank|lone surrogates"):
        Workflow(text, dir=tmp_path / "root")
    workflow = Workflow("w", dir=tmp_path / "root")
    for call in (
        lambda: workflow.mutex(text),
        lambda: workflow.heartbeat(text),
        lambda: workflow.touch_lease(text, holder="alpha", ttl=1),
        lambda: workflow.touch_lease("slot", holder=text, ttl=1),
        lambda: workflow.release_lease(text),
        lambda: workflow.run_step(text, lambda: 1),
        lambda: workflow.append_event(text),
        lambda: workflow.reset(text),
    ):
        with pytest.raises((ValueError, TypeError)):
            call()
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("folds", [False, True], ids=["exact", "folding"])
def test_hostile_ids_stay_inside_and_apart(home: Path, figures: Figures, folds: bool) -> None:
    """Each id on the list has a record of its own inside of the root, also where names that look alike are one."""
    root = home / "root"
    store = FileStore(root, FoldingFS(str(root)) if folds else None)
    ids = [*IDS, *EQUAL_STEMS]
    before = outside(home)
    for workflow_id in ids:
        use(workflow_id, store)
    for workflow_id in ids:
        assert_own(workflow_id, store)
    assert sorted(summary.workflow_id for summary in list_workflows(store=store)) == sorted(ids)
    assert outside(home).keys() - before.keys() == {"home/root"}
    assert before.items() <= outside(home).items()
    for workflow_id in ids[::2]:
        delete_workflow(workflow_id, store=store)
    for workflow_id in ids[1::2]:
        assert_own(workflow_id, store)
    assert len(list_workflows(store=store)) == len(ids) // 2
    figures.add(19, f"hostile ids on a {'folding' if folds else 'real'} file system", len(ids))


@pytest.mark.parametrize("scope", ["workflow", "store"])
def test_mutexes_of_hostile_keys_are_apart(home: Path, figures: Figures, scope: Any) -> None:
    """Who has the mutex of one key keeps nobody from that of another, and everybody from this one."""
    root = str(home / "root")
    here, there = FileStore(root, FoldingFS(root)), FileStore(root, FoldingFS(root))
    there._identity = ("another process", root)
    one, other = Workflow("w", store=here), Workflow("w", store=there)
    keys = [*IDS, *EQUAL_STEMS]
    for index, key in enumerate(keys):
        with one.mutex(key, scope=scope):
            with pytest.raises(MutexTimeoutError), other.mutex(key, timeout=0, scope=scope):
                pass
            with other.mutex(keys[index - 1], timeout=20, scope=scope):
                pass
    one.close()
    other.close()
    figures.add(19, "hostile mutex keys", len(keys))


def test_the_door_is_given_no_path_outside(home: Path, figures: Figures) -> None:
    """No call to the file system names anything outside of the root, but its own parents while it is made."""
    root = str(home / "root")
    fs = WatchedFS()
    store = FileStore(root, fs)
    parents = {str(parent) for parent in Path(root).parents}
    for workflow_id in IDS:
        use(workflow_id, store)
        delete_workflow(workflow_id, store=store)
    for name, args in fs.calls:
        for path in args:
            if isinstance(path, str) and not (path in parents and name in ("identify_path", "sync_folder")):
                _assert_inside(path, root)
    figures.add(19, "calls to the file system with hostile ids", len(fs.calls))


def _assert_inside(path: str, root: str) -> None:
    within = os.path.relpath(path, root)
    assert path == os.path.normpath(path)
    assert within == "." or not within.startswith(".."), f"{path} is not in {root}"
    for part in within.split(os.sep):
        assert _NAME.fullmatch(part), f"{path} has an odd part"


# What is opened and changed is said by the interpreter itself, whoever calls.
_WATCHED = """
import os, sys
from reliability.test_hostile_names import IDS, use
from iso_orchestrator import FileStore, delete_workflow

root, seen, watching = sys.argv[1], set(), False
parents = [os.path.dirname(root)]

def watch(event, args):
    if watching and (event == "open" or event.startswith(("os.", "shutil."))):
        looks = event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not (looks and args[0] in parents):  # a folder's name is synced by its parent
            seen.update(str(arg) for arg in args if isinstance(arg, (str, bytes)) and "/" in str(arg))

sys.addaudithook(watch)
store = FileStore(root)
use("first", store)  # all modules are loaded by now
watching = True
for workflow_id in IDS:
    use(workflow_id, store)
    delete_workflow(workflow_id, store=store)
watching = False
print(len(seen))
print("\\0".join(sorted(seen)))
"""


@pytest.mark.slow
def test_the_interpreter_sees_no_path_outside(home: Path, figures: Figures) -> None:
    """Nothing outside of the root is opened, made, renamed or removed by any way past the door either."""
    root = str(home / "root")
    with run_python(_WATCHED, root) as child:
        count = int(child.line())
        seen = child.line().split("\0")
        child.end()
    assert count == len(seen) > len(IDS)
    for path in seen:
        _assert_inside(path, root)
    figures.add(19, "paths that the interpreter was given", count)


def test_generated_names_are_safe_and_apart(tier: Tier, figures: Figures) -> None:
    """File names are made of few letters, fit anywhere, and are one for no two ids, whatever a file system folds."""
    count = tier.count(quick=5_000, full=50_000, soak=200_000)
    texts = [*IDS, *generated(tier.random("test_generated_names_are_safe_and_apart"), count)]
    for name_of in (lambda text: record_names(text).full, mutex_file_name):
        names = {name_of(text) for text in texts}
        assert len(names) == len(set(texts))
        for name in names:
            assert _NAME.fullmatch(name), name
            assert len(name) + len(".journal.new") <= 255
            assert name == name.casefold().rstrip(". ")
            assert name not in (".", "..")
    for text in texts:
        short = record_names(text).short
        assert _NAME.fullmatch(short), f"{text!r} is called {short}"
        assert record_names(text).full.startswith(short)
    figures.add(19, "generated ids, by their names", len(texts))


def test_generated_ids_have_records_of_their_own(tier: Tier, figures: Figures, home: Path) -> None:
    """Any ids at all live side by side in one root, also where names that look alike are one."""
    root = str(home / "root")
    store = FileStore(root, FoldingFS(root))
    count = tier.count(quick=200, full=2_000, soak=50_000)
    ids = list(dict.fromkeys(generated(tier.random("test_generated_ids_have_records_of_their_own"), count)))
    before = outside(home)
    for workflow_id in ids:
        use(workflow_id, store, keys=False)
    for workflow_id in ids:
        assert_own(workflow_id, store)
    assert outside(home).keys() - before.keys() == {"home/root"}
    assert len(list_workflows(store=store)) == len(ids)
    figures.add(19, "generated ids, by their records", len(ids))


def test_ids_of_one_short_name_are_apart(home: Path) -> None:
    """Three ids that the npm package would mix have three records, in whatever order they come and go."""
    store = FileStore(home / "root")
    one, two, three = EQUAL_STEMS
    assert len({record_names(text).short for text in (one, two, three)}) == 1
    for text in (one, two, three):
        use(text, store)
    delete_workflow(one, store=store)
    assert_own(two, store)
    assert_own(three, store)
    use(one, store)
    for text in (one, two, three):
        assert_own(text, store)
    assert len(list_workflows(store=store)) == 3


OWNERS = {"climbs": "../../../../x", "absolute": "/x", "dots": "..", "NUL": "\0", "slash": "a/b", "long": "x" * 300}


@pytest.mark.parametrize("owner", OWNERS.values(), ids=OWNERS)
def test_an_owner_on_record_reaches_no_path_outside(home: Path, owner: str) -> None:
    """A record may say that anything at all has a step in hand: nobody looks for that outside of the root."""
    root = str(home / "root")
    log, projection = FileStore(root).open("w", lambda: new_fold("w"))
    put(log, projection, f.StepStarted(at(0), "fetch", 1, owner), f.RunStarted(at(0), "run", owner, 1, "host"))
    log.detach(None)
    fs = WatchedFS()
    workflow = Workflow("w", store=FileStore(root, fs))
    with workflow:
        assert workflow.run_step("fetch", lambda: 1) == 1
    assert workflow.reset("fetch") == ["fetch"]
    workflow.close()
    for name, args in fs.calls:
        if isinstance(args[0], str) and name not in ("identify_path", "sync_folder"):
            _assert_inside(args[0], root)
