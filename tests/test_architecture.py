"""Who may import whom: data goes one way, and nothing upstream knows what is downstream."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import vavae

SOURCE = Path(vavae.__file__).parent
LIBRARIES = {"tokenizer", "teachers", "losses", "transformer", "flow", "data", "metrics", "pretrained"}
DOWNSTREAM = {"training", "stages", "report", "serve", "cli"}


def room_of(dotted: str) -> str:
    """`vavae.assets.cache` -> `pretrained.assets`; other modules belong to their top folder or file."""
    parts = dotted.split(".")[1:]
    return "pretrained.assets" if parts[:2] == ["pretrained", "assets"] else parts[0]


def imports_of(path: Path) -> set[str]:
    """Rooms of vavae that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            packages = node.module in ("vavae", "vavae.pretrained")
            names = [f"{node.module}.{alias.name}" for alias in node.names] if packages else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {room_of(name) for name in names if name.startswith("vavae.")}
    return found


def rooms() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts != ("__init__",):
            graph.setdefault(room_of(".".join(("vavae", *parts))), set()).update(imports_of(path))
    return {room: others - {room} for room, others in graph.items()}


def test_libraries_know_nothing_downstream() -> None:
    graph = rooms()
    assert graph.keys() >= LIBRARIES
    for room in LIBRARIES | {"pretrained.assets"}:
        assert not graph[room] & DOWNSTREAM, f"{room} imports {graph[room] & DOWNSTREAM}"


def test_training_knows_no_model() -> None:
    assert not rooms()["training"] & (LIBRARIES | {"stages", "report", "cli"})


def test_losses_use_no_teacher_and_only_stages_compose() -> None:
    graph = rooms()
    assert "teachers" not in graph["losses"]
    for room, others in graph.items():
        if room not in ("cli", "serve", "stages"):
            assert "stages" not in others, f"{room} imports stages"


def test_the_command_line_imports_stages_by_name_only() -> None:
    assert imports_of(SOURCE / "cli.py") <= {"config", "errors", "__version__"}


def test_no_circles() -> None:
    TopologicalSorter(rooms()).prepare()  # raises CycleError
