# SPDX-License-Identifier: Apache-2.0
"""Turn measurements into tables.

``python benchmarks/report.py throughput`` times the demo cases, eager against avskernels, prints
a table. ``python benchmarks/report.py tables FILE...`` reads pytest-benchmark JSON files of one
machine, records them compactly and draws one HTML page.
"""

import argparse
import html
import importlib
import json
import platform
import sys
from collections import defaultdict
from pathlib import Path

import torch

import avskernels

FOLDER = Path(__file__).parent
ORDER = ("eager", "compiled", "algebra", "avskernels", "cuda")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    short = commands.add_parser("throughput", help="time the demo cases and print a table")
    short.add_argument("--output", type=Path, help="JSON file to write")
    tables = commands.add_parser("tables", help="record and draw pytest-benchmark JSON files")
    tables.add_argument("measurements", type=Path, nargs="+")
    tables.add_argument("--output", type=Path, required=True, help="HTML file to write")
    tables.add_argument("--record", type=Path, help="compact JSON file to write")
    arguments = parser.parse_args()
    if arguments.command == "throughput":
        rows = throughput()
        if arguments.output:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(rows, indent=1))
    else:
        write_tables(arguments.measurements, arguments.output, arguments.record)
        sys.stdout.write(f"{arguments.output}\n")


def throughput():
    """Time eager and avskernels on the demo case of every operator; print as it goes."""
    from common import median_seconds, step_of

    sys.path.insert(0, str(FOLDER))
    sys.stdout.write(
        f"{'operator':26} {'case':34} {'eager':>10} {'avskernels':>11} {'faster':>8}\n"
    )
    rows = []
    for path in sorted(FOLDER.glob("bench_*.py")):
        module = importlib.import_module(path.stem)
        for case in (case for case in module.CASES if case.demo):
            milliseconds = {
                variant: 1e3
                * median_seconds(
                    step_of(module.VARIANTS[variant], case, "forward", "float32"), seconds=0.5
                )
                for variant in ("eager", "avskernels")
            }
            faster = milliseconds["eager"] / milliseconds["avskernels"]
            rows.append(
                {
                    "operator": module.OPERATOR,
                    "case": case.name,
                    "eager_ms": milliseconds["eager"],
                    "avskernels_ms": milliseconds["avskernels"],
                    "speedup": faster,
                    "threads": torch.get_num_threads(),
                }
            )
            sys.stdout.write(
                f"{module.OPERATOR:26} {case.name:34} {milliseconds['eager']:7.2f} ms "
                f"{milliseconds['avskernels']:8.2f} ms {faster:7.1f}x\n"
            )
            sys.stdout.flush()
    return rows


def write_tables(measurements, output, record=None):
    """Draw the pytest-benchmark files ``measurements`` as one page; record them in one file."""
    compacted = compact([json.loads(path.read_text()) for path in measurements])
    if record:
        record.write_text(json.dumps(compacted, indent=1) + "\n")
    output.write_text(page(compacted))


def compact(measurements):
    """Keep what a reader needs of pytest-benchmark files: the machine and a row per cell."""
    rows, extra = [], {}
    for entry in (entry for run in measurements for entry in run["benchmarks"]):
        extra = entry["extra_info"]
        row = {
            "operator": entry["fullname"].split("bench_")[1].split(".py")[0],
            "variant": entry["params"]["variant"],
            **{key: extra.get(key) for key in ("case", "mode", "dtype", "bytes", "flops")},
            "median_ms": round(1e3 * entry["stats"]["median"], 5),
            "rounds": entry["stats"]["rounds"],
            "peak_mb": None
            if extra.get("peak_bytes") is None
            else round(extra["peak_bytes"] / 1e6, 2),
        }
        if extra.get("device_seconds") is not None:
            row["device_ms"] = round(1e3 * extra["device_seconds"], 5)
        rows += [row | measured for measured in extra.get("in_turn", [{}])]
    info, run, device = avskernels.build_info(), measurements[0], extra.get("device", "cpu")
    return {
        "machine": {
            "cpu": run["machine_info"]["cpu"].get("brand_raw", platform.processor()),
            "instruction_set": info["cpu_active"],
            "threads": extra.get("threads"),
            "gpu": None if device == "cpu" else device,
            "cuda": None if device == "cpu" else info["cuda"],
            "torch": torch.__version__,
            "date": run["datetime"][:10],
            "commit": run["commit_info"].get("id"),
        },
        "rows": rows,
    }


STYLE = """
:root { color-scheme: light dark; --bar: #8a8f98; --ours: #2f7d5b; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2.5rem 0 .3rem; } h3 { margin: 1.2rem 0 .2rem; font-size: 1rem; font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td { padding: .12rem .5rem .12rem 0; white-space: nowrap; } td.number { text-align: right; }
td.wide { width: 55%; } .bar { height: .8rem; background: var(--bar); border-radius: 2px; }
.ours .bar { background: var(--ours); } .ours { font-weight: 600; }
"""


def page(record):
    """Draw one bar per variant, with the slowest of each group as 100 percent."""
    groups = defaultdict(lambda: defaultdict(list))
    for row in record["rows"]:
        groups[row["operator"]][row["case"], row["mode"], row["dtype"]].append(row)
    machine = ", ".join(f"{key} {value}" for key, value in record["machine"].items() if value)
    parts = [
        "<!doctype html><meta charset=utf-8><title>avskernels benchmarks</title>",
        f"<style>{STYLE}</style><h1>avskernels benchmarks</h1><p>{html.escape(machine)}</p>",
        "<p>Medians. Shorter is faster; the factor is against the slowest of each group.",
        "In brackets: the time of the GPU alone.</p>" if record["machine"]["gpu"] else "</p>",
    ]
    for operator, cells in groups.items():
        parts.append(f"<h2>{html.escape(operator)}</h2>")
        for key, rows in cells.items():
            parts.append(f"<h3>{html.escape(' · '.join(key))}</h3><table>")
            slowest = max(row["median_ms"] for row in rows)
            rows.sort(key=lambda row: (*ORDER, row["variant"]).index(row["variant"]))
            for row in rows:
                ours = ' class="ours"' if row["variant"] == "avskernels" else ""
                share = 100 * row["median_ms"] / slowest
                memory = "" if row["peak_mb"] is None else f"{row['peak_mb']:.1f} MB"
                parts.append(
                    f"<tr{ours}><td>{html.escape(row['variant'])}</td>"
                    f'<td class="wide"><div class="bar" style="width:{max(share, 0.3):.2f}%"></div>'
                    f'</td><td class="number">{row["median_ms"]:.3f} ms{on_device(row)}</td>'
                    f'<td class="number">{slowest / row["median_ms"]:.1f}x</td>'
                    f'<td class="number">{rate(row)}{saved(row)}</td>'
                    f'<td class="number">{memory}</td></tr>'
                )
            parts.append("</table>")
    return "\n".join(parts)


def on_device(row):
    return f" ({row['device_ms']:.3f})" if "device_ms" in row else ""


def saved(row):
    """Say how much less time a variant took that was measured in turn with its baseline."""
    if "saved_ms" not in row:
        return ""
    median, low, high = row["saved_ms"]
    return f"saves {median:.1f} ms ({low:.1f} to {high:.1f})"


def rate(row):
    """Return the achieved rate of a forward pass, in whichever unit is nearer to a limit."""
    if row["mode"] != "forward" or row["variant"] != "avskernels":
        return ""
    seconds = row["median_ms"] / 1e3
    return f"{row['bytes'] / seconds / 1e9:.1f} GB/s, {row['flops'] / seconds / 1e9:.0f} GFLOP/s"


if __name__ == "__main__":
    main()
