"""Which room of minikd may import which: the imports of every file, held to the table of minikd/README.md."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "minikd"
# A room imports itself and what stands before it. The core is the files directly in minikd/.
ROOMS = ["core", "datasets", "techniques", "checkpoints", "evaluation", "experiment", "cli"]
FILES = sorted(path.relative_to(PACKAGE) for room in ("", "*/") for path in PACKAGE.glob(f"{room}*.py"))
# Two doors out of the core, which open when they are used: a checkpoint's files, and the public names.
LAZY = {("classifier.py", "checkpoints"), ("__init__.py", "experiment"), ("__init__.py", "datasets"),
        ("__init__.py", "techniques")}  # fmt: skip


def room_of(path):
    return path.parts[0] if len(path.parts) > 1 else "core"


def imports(path):
    """The files and folders of minikd that the file imports, at its top and in its functions."""
    for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
        modules = [node.module] if isinstance(node, ast.ImportFrom) else []
        if modules == ["minikd"]:  # from minikd import cli
            modules = [f"minikd.{alias.name}" for alias in node.names]
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"minikd/{path}: a relative import"
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (module.split(".")[1] for module in modules if module and module.startswith("minikd."))


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] != "build"], ids=str)
def test_a_room_imports_only_what_stands_before_it(path):
    room = room_of(path)
    allowed = {"report"} if room in ("experiment", "cli") else set()
    allowed |= {"report"} if room == "report" else set(ROOMS[1 : ROOMS.index(room) + 1])
    for name in set(imports(path)):
        if not (PACKAGE / name).is_dir():  # a file of the core
            assert room != "report" or name in ("errors", "files"), f"minikd/{path} imports minikd.{name}"
        else:
            assert name in allowed or (str(path), name) in LAZY, f"minikd/{path} imports minikd.{name}"
