"""House rules that no linter knows; prints each breach and exits 1 if there is one."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# (folder, suffixes, pattern, why)
RULES = [
    (
        "csrc",
        (".h", ".cpp", ".cu"),
        r"#include\s*[<\"](ATen/|c10/|torch/extension\.h|torch/all\.h)",
        "only the stable ABI headers of torch",
    ),
    ("csrc", (".h", ".cpp", ".cu"), r"\b(c10|at)::", "only torch::stable and torch::headeronly"),
    ("avskernels", (".py",), r"^\s*print\(", "no print in the packages"),
    ("avsmodel", (".py",), r"^\s*print\(", "no print in the packages"),
    ("avskernels", (".py",), r"^\s*(import|from) avsmodel", "avskernels never imports avsmodel"),
    (
        "avsmodel",
        (".py",),
        r"avskernels\.(_|core|ops)|from avskernels\.(?!nn|testing)",
        "avsmodel imports only public names of avskernels",
    ),
]

LICENCE = re.compile(r"(#|//) SPDX-License-Identifier: Apache-2.0\n")

TOP_LEVEL = {"csrc", "avskernels", "avsmodel", "benchmarks", "tests"}
BUILT = {"build", "runs", "dist", "__pycache__"}


def breaches():
    for folder, suffixes, pattern, why in RULES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix not in suffixes:
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if re.search(pattern, line):
                    yield f"{path.relative_to(ROOT)}:{number}: {why}"
    for folder in ("csrc", "avskernels", "avsmodel", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*")):
            source = path.suffix in (".h", ".cpp", ".cu", ".py", ".pyi")
            if source and not LICENCE.match(path.read_text()):
                yield f"{path.relative_to(ROOT)}:1: expected the licence line"
    for path in sorted(ROOT.iterdir()):
        expected = path.name in TOP_LEVEL | BUILT or path.name.startswith(".")
        if path.is_dir() and not expected and not path.name.endswith(".egg-info"):
            yield f"{path.name}/: expected only the folders {sorted(TOP_LEVEL)}"


if __name__ == "__main__":
    found = list(breaches())
    sys.stdout.writelines(f"{breach}\n" for breach in found)
    sys.exit(1 if found else 0)
