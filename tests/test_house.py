"""The floors of the house: core below the operators' rooms, nn and the package above them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "avskernels"
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("ops/*/operator.py"))

# The rooms that a room may enter, in Python and in C++ (beside common): an operator composed of
# others, or a module around two.
MAY_ENTER = {
    "channel_attention_mixer": {"attention_pool"},
    "matching_cost": {"linear_assignment"},
    "tpavi": {"attention_pool"},
}


def imports_of(path):
    """Yield the absolute names that a file imports, wherever in it, and whether at its top."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node in tree.body
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in tree.body


def files(*patterns):
    return sorted(path for pattern in patterns for path in PACKAGE.glob(pattern))


def own_imports(path):
    return {name for name, _ in imports_of(path) if name.split(".")[0] == "avskernels"}


def named(paths):
    return {"argvalues": paths, "ids": [str(path.relative_to(PACKAGE)) for path in paths]}


@pytest.mark.parametrize("path", **named(files("core/*.py")))
def test_core_stands_on_nothing_above_it(path):
    assert {
        name
        for name in own_imports(path)
        if not name.startswith(("avskernels.core", "avskernels._C"))
    } == set()


@pytest.mark.parametrize("path", **named(files("ops/*/*.py")))
def test_a_room_enters_only_the_rooms_it_may(path):
    room = path.parent.name
    rooms = {room} | MAY_ENTER.get(room, set())
    allowed = ("avskernels.core.", "avskernels._C", *(f"avskernels.ops.{r}." for r in rooms))
    assert {name for name in own_imports(path) if not f"{name}.".startswith(allowed)} == set()


@pytest.mark.parametrize("path", **named(files("ops/*/reference.py")))
def test_a_reference_stands_alone(path):
    assert own_imports(path) == set()


def test_only_the_chooser_and_the_list_of_references_import_them():
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in files("**/*.py")
        if any(".reference" in name for name in own_imports(path))
    }
    assert importers <= {"reference.py", "__init__.py"} | {
        f"ops/{room}/operator.py" for room in ROOMS
    }


@pytest.mark.parametrize("path", **named(files("*.py")))
def test_the_package_only_hands_names_on(path):
    body = ast.parse(path.read_text()).body
    kinds = {type(node) for node in body}
    assert kinds <= {ast.Expr, ast.Import, ast.ImportFrom, ast.Assign}


def test_triton_is_imported_only_by_its_own_files():
    for path in files("**/*.py"):
        if ("triton" in path.stem and path.name != "triton.py") or path.match("ops/*/triton.py"):
            continue
        assert not {n for n, _ in imports_of(path) if n.split(".")[0] == "triton"}, path
        at_top = {n for n, top in imports_of(path) if top and n.startswith("avskernels.ops")}
        assert not {n for n in at_top if "triton" in n.rsplit(".", 1)[1]}, path


def test_no_circles():
    graph = {}
    for path in files("**/*.py"):
        module = ".".join(("avskernels", *path.relative_to(PACKAGE).with_suffix("").parts))
        graph[module.removesuffix(".__init__")] = own_imports(path)

    def imported(names):  # the modules, where a name is something in one
        for name in names - {"avskernels._C"}:
            yield name if name in graph else name.rpartition(".")[0]

    def visit(module, trail):
        assert module not in trail, f"a circle: {' -> '.join([*trail, module])}"
        if module not in done:
            for other in imported(graph.get(module, ())):
                visit(other, [*trail, module])
            done.add(module)

    done = set()
    for module in graph:
        visit(module, [])


def test_no_string_names_a_module_of_ours():
    for path in files("**/*.py"):
        assert not re.search(r"import_module\(|__import__\(", path.read_text()), path


@pytest.mark.parametrize("room", ["common", *ROOMS])
def test_csrc_has_the_same_floors(room):
    allowed = {"common", room} | MAY_ENTER.get(room, set())
    for path in (ROOT / "csrc" / room).iterdir():
        entered = set(re.findall(r'(?:include|KERNEL) "(\w+)/', path.read_text()))
        assert entered <= ({"common"} if room == "common" else allowed), path


def test_every_folder_of_csrc_is_a_room():
    folders = {path.name for path in (ROOT / "csrc").iterdir() if path.is_dir()}
    assert folders == {"common", *ROOMS}
