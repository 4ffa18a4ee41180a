# SPDX-License-Identifier: Apache-2.0
"""Write the README's table of operators from the lists of who computes them.

python tests/tools/readme.py [--check]      --check writes nothing and exits 1 where it is old
"""

import inspect
import sys
from pathlib import Path

import avskernels
from avskernels.core.operator import OPERATORS

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- operators -->\n", "<!-- /operators -->\n"


def computed_by(op: str, device: str) -> str:
    """Name what may compute an operator on a device type, in order."""
    names: list[str] = []
    for implementation in OPERATORS[op].implementations:
        if implementation.device not in (device, "any") or implementation.name == "CUDA C++":
            continue
        names.append(implementation.name)
        if implementation.refuses is None:
            break
    return ", else ".join(dict.fromkeys(names))


def both_directions(op: str, device: str) -> str:
    """Likewise with the backward operator where another implementation computes it."""
    forward, backward = computed_by(op, device), f"_{op}_backward"
    if backward not in OPERATORS or computed_by(backward, device) == forward:
        return forward
    return f"{forward}; backward {computed_by(backward, device)}"


def table() -> str:
    """Return the rows of all public operators."""
    lines = ["| operator | what it does | CPU | CUDA device |", "|---|---|---|---|"]
    for op in sorted(name for name in OPERATORS if not name.startswith("_")):
        purpose = (inspect.getdoc(getattr(avskernels, op)) or "").splitlines()[0].rstrip(".")
        room = Path(inspect.getfile(getattr(avskernels, op))).parent.name
        lines.append(
            f"| [`{op}`](avskernels/ops/{room}/README.md) | {purpose} | "
            f"{both_directions(op, 'cpu')} | {both_directions(op, 'cuda')} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replace the table, or compare it."""
    text = README.read_text()
    before, rest = text.split(BEGIN)
    fresh = before + BEGIN + table() + END + rest.split(END)[1]
    if "--check" in sys.argv[1:]:
        if fresh != text:
            sys.exit("readme: expected the table of operators that `make readme` writes")
    else:
        README.write_text(fresh)


if __name__ == "__main__":
    main()
