"""The direction of imports, and which module alone may do what. The list `ROOMS` is the architecture."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import iso_orchestrator
from iso_orchestrator.store import STORE_URLS

PACKAGE = Path(iso_orchestrator.__file__).parent

# From the ground up: a room imports from itself and from the rooms above it in this list.
ROOMS = [
    "text",
    "checks",
    "notes",
    "errors",
    "record",
    "codec",
    "system",
    "store",
    "runtime",
    "steps",
    "coordination",
    "fanout",
    "commands",
    "agents",
    "views",  # but not the command line
    "decorators",
    "workflow",
    "functions",
    "testing",
    "otel",
    "examples",
    "views.commands",
    "views.cli",
    "__init__",
    "__main__",
]

# Who alone may import what.
DOORS = {
    "time": {"agents.stand_in", "system.clock"},
    "fcntl": {"system.filesystem"},
    "portalocker": {"system.file_lock"},
    "cattrs": {"codec.converter", "codec.records", "codec.values"},
    "subprocess": {"agents.stand_in", "system.guard", "system.processes"},
    "psutil": {"system.processes"},
    "tenacity": {"steps.options"},
    "opentelemetry": {"otel"},
    "argparse": {"examples.review_batch", "views.cli", "views.commands", "views.completion"},
}

# Which calls open, make, move or remove files, and which modules alone may make them. `system.clock` reads the id of
# the boot.
FILE_CALLS = {"open", "mkdir", "makedirs", "rename", "replace", "unlink", "rmdir", "fsync", "read_text", "write_text"}
FILE_DOORS = {
    "system.filesystem",
    "agents.stand_in",
    "system.clock",
    "examples.review_batch",
}


def room_of(module: str) -> str:
    return module if module in ROOMS else module.partition(".")[0]


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imported(tree: ast.AST) -> set[str]:
    """All that a module imports, by full names."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def named(tree: ast.AST) -> set[str]:
    """The package's modules among what is imported, as they are called in `modules()`."""
    known = modules()
    names = {name.removeprefix("iso_orchestrator.") for name in imported(tree) if name.startswith("iso_orchestrator.")}
    return {name for name in names if name in known}


def run_time_imports(module: str) -> set[str]:
    """The package's modules that a module imports when it runs, at once or at first use."""
    tree = ast.parse(modules()[module].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = []
    return named(tree)


def test_every_module_is_in_a_room() -> None:
    """Each module of the package is in one room, and each name in the list is a room."""
    assert {room_of(module) for module in modules()} == set(ROOMS)


@pytest.mark.parametrize("module", modules())
def test_a_room_imports_only_from_rooms_above_it(module: str) -> None:
    """Folders form no circle, since each imports only from those above it in the list."""
    room = ROOMS.index(room_of(module))
    below = {name for name in run_time_imports(module) if ROOMS.index(room_of(name)) > room}
    assert below == set()


def test_modules_form_no_circle() -> None:
    """No module imports itself, directly or through others, inside of a room or over rooms."""
    graph = {module: run_time_imports(module) for module in modules()}
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
        if any(name == library or name.startswith(f"{library}.") for name in imported(ast.parse(path.read_text())))
    }
    assert users <= DOORS[library]


def test_only_the_store_knows_its_files() -> None:
    """All other rooms use the protocol of stores, so that a new store is known to `store/__init__.py` alone."""
    kinds = tuple(STORE_URLS.values())
    inside = {module for module in modules() if module.partition(".")[0] == "store"} | {"__init__", "testing"}
    users = {
        module
        for module in modules().keys() - inside
        if any(f"iso_orchestrator.{name}".startswith(kinds) for name in run_time_imports(module))
    }
    assert users == set()


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
    """The standard library's conditions and events are used nowhere: `system.events` says why."""
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
    """No module has over 500 lines."""
    lines = {module: len(path.read_text().splitlines()) for module, path in modules().items()}
    assert {module: count for module, count in lines.items() if count > 500} == {}
