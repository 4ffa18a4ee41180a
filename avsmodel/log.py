# SPDX-License-Identifier: Apache-2.0
"""The log of a run: one JSON object per line, and the same rows as CSV."""

import csv
import json
from pathlib import Path
from typing import Any

from avsmodel.checkpoint import write_atomically

LOG = "log.jsonl"


class RunLog:
    """Appends rows to ``log.jsonl`` and to ``{kind}.csv`` of a run folder.

    Args:
        run: the folder.
        step: rows of later steps are dropped first: a killed run wrote them after its last
            checkpoint, and the resumed run will write them again.
    """

    def __init__(self, run: Path, step: int) -> None:
        self.run = run
        self._columns: dict[str, list[str]] = {}
        rows = [row for row in read_log(run) if row["step"] <= step]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(run / LOG, lambda file: file.write(lines.encode()))
        for path in run.glob("*.csv"):
            path.unlink()
        for row in rows:
            self._append_csv(row)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append a row of a kind (train or evaluate); the kind's first row sets its columns."""
        row = {"kind": kind, "step": step, **values}
        with open(self.run / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._append_csv(row)

    def _append_csv(self, row: dict[str, Any]) -> None:
        kind = row["kind"]
        first = kind not in self._columns
        columns = self._columns.setdefault(kind, [name for name in row if name != "kind"])
        with open(self.run / f"{kind}.csv", "a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            if first:
                writer.writeheader()
            writer.writerow(row)


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log, without a last line that a killed process left incomplete."""
    path = run / LOG
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
