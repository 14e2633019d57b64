"""Every import goes to a lower floor, lazy imports included."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vavae

SOURCE = Path(vavae.__file__).parent
# From the ground up. Rooms on one floor do not know each other.
FLOORS = (
    {"errors", "version"},
    {"device", "extras", "grids", "io", "report"},
    {"config", "progress", "rng"},
    {"assets", "tokenizer", "transformer", "training"},
    {"data", "flow", "losses"},
    {"checkpoints", "teachers"},
    {"metrics", "models"},
    {"evaluation", "serve"},
    {"stages"},
    {"commands", "demo", "frontier"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def last_name(node: ast.expr) -> str:
    """Return `c` of the expression `a.b.c`, or nothing; `ast.unparse` would take most of the time of these tests."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def imported_modules(source: str) -> set[str]:
    """Return the modules of vavae that a file imports anywhere, also by name with `import_module`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "vavae":
            found |= {f"vavae.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add("." * node.level + node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and last_name(node.func).endswith(("import_module", "__import__")):
            found |= {str(part.value) for part in ast.walk(node) if isinstance(part, ast.Constant)}
    return {name for name in found if name.startswith(("vavae.", "."))}


@cache
def rooms_of(path: Path) -> set[str]:
    """Return the rooms that a file imports."""
    return {name.split(".")[1] for name in imported_modules(path.read_text(encoding="utf-8"))}


def files_of(room: str) -> list[Path]:
    """Return the files of a room, which is a folder or one file of the package's root."""
    return [path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).with_suffix("").parts[0] == room]


def test_every_room_has_its_floor() -> None:
    names = {path.relative_to(SOURCE).with_suffix("").parts[0] for path in SOURCE.rglob("*.py")}
    assert names - {"__init__"} == FLOOR.keys()


@pytest.mark.parametrize("room", sorted(FLOOR.keys() - {"cli"}))
def test_imports_go_to_lower_floors(room: str) -> None:
    upwards = [
        f"{path.relative_to(SOURCE)} imports {other}"
        for path in files_of(room)
        for other in rooms_of(path) - {room}
        if FLOOR.get(other, len(FLOORS)) >= FLOOR[room]
    ]
    assert not upwards


def test_training_knows_no_model() -> None:
    ground = {room for rooms in FLOORS[:3] for room in rooms}
    assert {room for path in files_of("training") for room in rooms_of(path)} <= ground | {"training"}


def test_command_line_imports_the_ground_only() -> None:
    # It finds the module of a command by its name.
    assert rooms_of(SOURCE / "cli.py") - {""} <= {"config", "errors", "training", "version"}


def test_hidden_imports_are_found() -> None:
    source = "import importlib\ndef f():\n    return importlib.import_module('vavae.stages.sample')\n"
    assert imported_modules(source) == {"vavae.stages.sample"}
    assert imported_modules("__import__('vavae.cli')") == {"vavae.cli"}
    assert imported_modules("if False:\n    from vavae import cli, data\n") == {"vavae.cli", "vavae.data"}
    assert imported_modules("from importlib import import_module\nimport_module(f'vavae.{x}')") == {"vavae."}


@pytest.mark.slow
def test_no_circular_imports() -> None:
    """Lazy imports count; imports for annotations and those of a package's `__init__` do not."""
    modules = {
        ".".join(("vavae", *path.relative_to(SOURCE).with_suffix("").parts)): path for path in SOURCE.rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        blocks = [n for n in nodes if isinstance(n, ast.If) and last_name(n.test) == "TYPE_CHECKING"]
        for_types = {id(node) for block in blocks for node in ast.walk(block)}
        imports = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module and id(n) not in for_types]
        names = {
            name for node in imports for alias in node.names for name in (node.module, f"{node.module}.{alias.name}")
        }
        graph[module] = names & modules.keys()
    TopologicalSorter(graph).prepare()  # raises CycleError
