"""The cases of all operators: every ``tests/ops/<op>/cases*.py``."""

import importlib
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent


def all_cases() -> dict[str, ModuleType]:
    """Return the modules of cases by the name of their operator."""
    modules = [
        importlib.import_module(f"ops.{path.parent.name}.{path.stem}")
        for path in sorted(HERE.glob("*/cases*.py"))
    ]
    return {module.OP: module for module in modules}
