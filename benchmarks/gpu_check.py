"""Losses, hippynn and CHGNet on a GPU: is it right, how fast, how often does the host wait?

    bash benchmarks/gpu_check.sh                            # on one NVIDIA GPU, three minutes
    python benchmarks/gpu_check.py --dry --out gpu_check    # everything tiny, on the CPU

Writes ``gpu_check.json`` after each part, and ``gpu_check.md``, the same as tables. Parts do not
depend on each other: one that fails says so in a line, the others run, and the exit code is 1.
Times are medians of repeats, memory is what PyTorch's allocator held at most on top of the inputs.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_check_hosts import chgnet, hippynn, labeller
from gpu_check_losses import correctness, host_waits, operators, speed
from gpu_check_measuring import Found, Setup, one_line


def device(setup: Setup, found: Found) -> None:
    """Say what this runs on."""
    names = ("kd_plugins", "numpy", "triton", "hippynn", "chgnet", "ase")
    found["python"], found["torch"] = sys.version.split()[0], torch.__version__
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)

    found["cores"], found["threads"] = os.cpu_count(), torch.get_num_threads()
    if not setup.is_gpu:
        found["card"] = "none: a dry run on the CPU"
        return

    properties = torch.cuda.get_device_properties(0)
    found["card"], found["memory_GiB"] = properties.name, properties.total_memory / 2**30
    found["capability"] = f"{properties.major}.{properties.minor}"
    found["cuda"] = torch.version.cuda

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    asked = subprocess.run(query, capture_output=True, text=True, check=False)
    found["driver"] = asked.stdout.strip() or "unknown"


Part = Callable[[Setup, Found], None]
PARTS: dict[str, tuple[Part, float]] = {
    "device": (device, 15),
    "correctness": (correctness, 60),
    "operators": (operators, 60),
    "waits": (host_waits, 20),
    "speed": (speed, 120),
    "hippynn": (hippynn, 60),
    "chgnet": (chgnet, 50),
    "labeller": (labeller, 30),
}
"""Name to a part and the seconds after which it is ended, of which half are for repeats."""


def run(part: Part, setup: Setup, limit: float) -> Found:
    """Return what a part has found, with its error if it failed."""

    def end(*_: object) -> None:
        raise TimeoutError(f"not done after {limit:.0f} s")

    found: Found = {}
    start = time.perf_counter()
    setup.until = start + limit / 2
    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, limit)

    try:
        part(setup, found)
        result = {"ok": True}
    except Exception as error:
        traceback.print_exc()
        result = {"ok": False, "error": one_line(error)}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)

    return {**result, "seconds": time.perf_counter() - start, **found}


def rounded(value: Any) -> Any:
    """Return the same with four digits a number, and as JSON has it."""
    if isinstance(value, dict):
        return {str(key): rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    return value


def tables(report: Found) -> str:
    """Return the report as Markdown."""
    parts, lines = report["parts"], []
    facts = {k: v for k, v in parts.get("device", {}).items() if k not in ("ok", "seconds")}
    lines += [", ".join(f"{key} {value}" for key, value in facts.items()), ""]

    lines += ["| part | result | s |", "|---|---|--:|"]
    for name, part in parts.items():
        lines.append(f"| {name} | {'good' if part['ok'] else part['error']} | {part['seconds']} |")

    rows = parts.get("speed", {}).get("rows", [])
    forms = [form for form in (rows[0] if rows else ()) if form != "edges"]
    if forms:
        lines += ["", f"| edges | {' | '.join(forms)} |", f"|--:|{'---|' * len(forms)}"]
    for row in rows:
        lines.append(f"| {row['edges']:,} | {' | '.join(cell(row.get(f, {})) for f in forms)} |")

    for name, part in parts.items():
        if name not in ("device", "speed"):
            lines += ["", f"**{name}**", "", "| what | found |", "|---|---|"]
            lines += [f"| {key} | {shown(value)} |" for key, value in part.items()]
    return "\n".join(lines) + "\n"


def cell(form: Found) -> str:
    """Return time, ratio and memory of a form."""
    if "ms" not in form:
        return form.get("note", "")
    memory = f", {form['MiB']:,.0f} MiB" if form.get("MiB") is not None else ""
    return f"{form['ms']} ms ({form['ratio']}x){memory}"


def shown(value: Any) -> str:
    """Return a value for a cell."""
    text = json.dumps(value) if isinstance(value, dict | list) else str(value)
    return text.replace("|", "/")


def main() -> int:
    """Run the parts; return 1 if one failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="of .json and .md")
    parser.add_argument("--dry", action="store_true", help="everything tiny, on the CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    if not arguments.dry and not torch.cuda.is_available():
        parser.error("torch finds no NVIDIA GPU here; --dry runs everything on the CPU")

    if arguments.dry:
        # hippynn's kernels would take longer to compile than to run
        os.environ.setdefault("HIPPYNN_USE_CUSTOM_KERNELS", "_pytorch_raw")
    setup = Setup(torch.device("cpu" if arguments.dry else "cuda"), arguments.dry)
    today = datetime.date.today().isoformat()
    report: Found = {"date": today, "dry": arguments.dry, "parts": {}}

    for name in arguments.parts:
        print(f"{name} ...", flush=True)
        part, limit = PARTS[name]
        # a machine without a GPU may be slow, or busy
        report["parts"][name] = rounded(run(part, setup, 3 * limit if arguments.dry else limit))
        arguments.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(tables(report))

    print(tables(report))
    return int(not all(part["ok"] for part in report["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
