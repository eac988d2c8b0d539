"""The direction of imports, and who alone may do what. The table `FLOORS` is the architecture."""

from __future__ import annotations

import ast
import statistics
from pathlib import Path

import pytest

import iso_orchestrator

PACKAGE = Path(iso_orchestrator.__file__).parent

# From the ground up. A module imports what stands on a lower floor, or beside it.
FLOORS = [
    {
        "clock",
        "collector",
        "command_line",
        "errors",
        "identity",
        "markup",
        "names",
        "noting",
        "progress",
        "seconds",
        "shielded",
        "value",
        "waiting",
    },
    {"facts", "fold", "model"},
    {"codec"},
    {"store"},
    {
        "command_leftovers",
        "command_log",
        "command_run",
        "command_start",
        "context",
        "handle",
        "liveness",
        "pool",
        "pool_future",
        "processes",
        "session",
    },
    {
        "agents",
        "batch",
        "command_step",
        "command_call",
        "command_output",
        "functions",
        "lease",
        "mutex",
        "mutex_queue",
        "naming",
        "pace",
        "record_keeper",
        "reset",
        "retry",
        "runs",
        "scheduler",
        "settling",
        "state",
        "step",
        "step_run",
        "stores",
        "timeout",
        "workflow",
    },
    {"__init__", "__main__", "cli", "demo", "doctor", "examples", "logs", "report", "stand_in_agent", "top"},
]

# Who alone may import what.
DOORS = {
    "time": {"agents.dialects", "agents.stand_in", "clock", "stand_in_agent"},
    "fcntl": {"store.file.fs"},
    "portalocker": {"store.file.locks"},
    "cattrs": {"codec.conversion", "codec.mapping", "codec.strict", "codec.values"},
    "subprocess": {"agents.stand_in", "command_start", "demo", "processes.exit"},
    "psutil": {"processes.psutil_table"},
    "tqdm": {"progress"},
    "tenacity": {"retry"},
    "argparse": {"cli", "examples.review_batch", "stand_in_agent"},
}

# Which calls open, make, move or remove files, and who alone may make them. `clock` reads the id of the boot,
# `processes.linux_table` what the kernel says of processes.
FILE_CALLS = {"open", "mkdir", "makedirs", "rename", "replace", "unlink", "rmdir", "fsync", "read_text", "write_text"}
FILE_DOORS = {
    "store.file.fs",
    "agents.stand_in",
    "clock",
    "examples.review_batch",
    "processes.linux_table",
    "stand_in_agent",
}


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def own_imports(path: Path) -> set[str]:
    """The package's modules that a module imports, as they are called in `modules()`."""
    known = modules()
    names = {name.removeprefix("iso_orchestrator.") for name in imports(path) if name.startswith("iso_orchestrator.")}
    return {name for name in names if name in known}


def floor_of(module: str) -> int:
    room = module.partition(".")[0]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def test_every_module_has_a_floor() -> None:
    """Each module of the package stands on one floor, and each name in the table is a module."""
    rooms = {module.partition(".")[0] for module in modules()}
    assert rooms == set().union(*FLOORS)


@pytest.mark.parametrize("module", modules())
def test_imports_go_down_or_aside(module: str) -> None:
    """No module imports from a higher floor."""
    # What is imported for a type checker alone is not there at run time; errors name a record that they carry.
    above = {name for name in own_imports(modules()[module]) if floor_of(name) > floor_of(module)}
    assert above <= ({"model"} if module == "errors" else set())


def test_no_circles() -> None:
    """No module imports itself, however far around."""
    graph = {module: own_imports(path) for module, path in modules().items()}
    graph["errors"] = graph["errors"] - {"model"}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module in done:
            return
        for name in graph.get(module, ()):
            # A package's face imports its own rooms, which do not import the face.
            if not name.startswith(f"{module}."):
                visit(name, (*way, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("library", DOORS)
def test_one_door_to_each_library(library: str) -> None:
    """Time, locks, converters and processes are each known to the modules that are for them, and to no other."""
    users = {
        module
        for module, path in modules().items()
        if any(name == library or name.startswith(f"{library}.") for name in imports(path))
    }
    assert users <= DOORS[library]


def test_one_door_to_the_file_system() -> None:
    """Files are opened, made and removed in one module."""
    users = set()
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = node.func
            by_os = isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "os"
            by_path = isinstance(called, ast.Attribute) and called.attr in {"read_text", "write_text"}
            if (isinstance(called, ast.Name) and called.id == "open") or (
                (by_os or by_path) and isinstance(called, ast.Attribute) and called.attr in FILE_CALLS
            ):
                users.add(module)
    assert users <= FILE_DOORS


def test_nobody_waits_where_a_signal_leaves_a_lock() -> None:
    """The standard library's conditions and events are used nowhere: `waiting` says why."""
    users = {
        module
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "threading"
        and node.attr in {"Condition", "Event", "Semaphore", "BoundedSemaphore", "Barrier"}
    }
    assert users == set()


def test_modules_are_short() -> None:
    """The median module has at most 150 lines, and none has over 500."""
    lines = {module: len(path.read_text().splitlines()) for module, path in modules().items()}
    assert statistics.median(lines.values()) <= 150
    assert {module: count for module, count in lines.items() if count > 500} == {}
