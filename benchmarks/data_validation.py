"""Time and peak memory of `scaler data validate` and `convert` on long files, each in a fresh process.

    python benchmarks/data_validation.py --json [--megabytes 100] [--endless-gigabytes 10]

Rows of about 1 KB, all different; the endless line is a sparse file of NUL bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHILD = """
import json, sys, time
from pathlib import Path
from scaler_wizard.data.convert import convert_file
from scaler_wizard.data.validate import validate_file
def peak():
    # Not ru_maxrss, which begins with what the parent held when it forked.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
what, path, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
base = peak()
started = time.perf_counter()
if what == "convert":
    rows = convert_file(path, out, force=True).rows
else:
    rows = validate_file(path, what, quarantine=out).accepted
seconds = time.perf_counter() - started
print(json.dumps({"rows": rows, "seconds": round(seconds, 1), "peak_mb": round(peak() - base, 1)}))
"""
WORDS = [f"word{n}" for n in range(4000)]


def measure(what: str, path: Path) -> dict[str, Any]:
    """Rows, seconds, and megabytes above what the imports take."""
    arguments = [sys.executable, "-c", CHILD, what, str(path), f"{path}.out"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def write_rows(path: Path, megabytes: int) -> None:
    """Prompts and completions of 64 words each."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes << 20:
            for _ in range(500):
                prompt, completion = (" ".join(rng.choices(WORDS, k=64)) for _ in range(2))
                file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")


def main() -> None:
    """Write the files, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--endless-gigabytes", type=int, default=10)
    parser.add_argument("--levels", default="quick,standard,deep,convert")
    options = parser.parse_args()
    results: dict[str, Any] = {"megabytes": options.megabytes}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, options.megabytes)
        for what in options.levels.split(","):
            results[what] = measure(what, path)
            print(f"{what}: {results[what]}", flush=True)
        path.unlink()
        endless = Path(folder) / "endless.jsonl"
        with endless.open("wb") as file:
            file.truncate(options.endless_gigabytes << 30)
        results["endless"] = measure("standard", endless) | {"gigabytes": options.endless_gigabytes}
        print(f"one endless line: {results['endless']}", flush=True)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
