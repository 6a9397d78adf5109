"""Write docs/models.md: what becomes of torchvision's and timm's networks.

    python tools/models_table.py

Each network runs in a process of its own, with limits, so that a hang or a crash is a row. Finished
rows are kept in a file outside the repository and not made again. Exits with 1 where a network was
neither quantized nor refused with a reason.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from model_names import every_name  # noqa: E402  (found by the line before)

Row = dict[str, Any]
# Processes start from one that has imported everything, which takes longer than a small network.
_CONTEXT = multiprocessing.get_context("forkserver")
_GIBIBYTE = 2**30

_HEAD = """# Networks

Image classifiers of torchvision, and small networks of {families} of timm's families, with
random weights and the smallest images that each takes (64, 96, 128, 160 pixels or its own size):
quantized to w4a4 (a few images, one step), saved, loaded and evaluated. The loaded model's logits
equal the saved one's bit for bit. Made by `python tools/models_table.py`.

{counts}

"Weight layers" are those whose weights are quantized, of all that the network calls; "layer
inputs" those of which every value comes from a quantizer, at every call (an average of quantized
values is on no grid). `synq_fast.coverage(model)` and every run name the rest and the reasons. The
placement is the one that `quantization.placement = "auto"` takes. A network that is not in a table
has not been tried.
"""


def attempt(name: str, seconds: float, gibibytes: float, threads: int) -> Row:
    """The row of one network, whatever happens to its process."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    arguments = (name, gibibytes, threads, sender)
    process = _CONTEXT.Process(target=_in_process, args=arguments, daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            return {"model": name, "result": "stopped", "note": f"not done after {seconds:.0f} s"}
        row: Row = receiver.recv()
    except EOFError:
        process.join()
        note = f"the process ended with {process.exitcode}"
        return {"model": name, "result": "failed", "note": note}
    finally:
        process.kill()
        process.join()
    return row


def _in_process(name: str, gibibytes: float, threads: int, sender: Connection) -> None:
    import torch
    import try_model

    size = int(gibibytes * _GIBIBYTE)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    torch.set_num_threads(threads)
    sender.send(try_model.attempt(name))


def read(cache: Path) -> dict[str, Row]:
    """The last row of each network."""
    if not cache.exists():
        return {}
    rows = [json.loads(line) for line in cache.read_text(encoding="utf-8").splitlines()]
    return {row["model"]: row for row in rows}


def render(rows: Iterable[Row]) -> str:
    """The page."""
    rows = list(rows)
    kinds = {"ok": "quantized", "refused": "refused with a reason"}
    kinds |= {"stopped": "stopped at a limit", "failed": "failed"}
    found = {kind: sum(row["result"] == kind for row in rows) for kind in kinds}
    counts = ", ".join(f"{n} {kinds[kind]}" for kind, n in found.items() if n)
    families = sum(row["model"].startswith("timm/") for row in rows)
    lines = [_HEAD.format(families=families, counts=f"{len(rows)} networks: {counts}.")]
    for library in dict.fromkeys(row["model"].rpartition("/")[0] for row in rows):
        own = [row for row in rows if row["model"].rpartition("/")[0] == library]
        lines += [f"\n## {library or 'Others'}\n\n", *_table(own)]
    return "".join(lines)


def _table(rows: list[Row]) -> list[str]:
    titles = ("model", "image", "placement", "weight layers", "layer inputs", "result")
    lines = [f"| {' | '.join(titles)} |\n", "|---|--:|---|--:|--:|---|\n"]
    for row in rows:
        coverage = row.get("coverage")
        shown = ("", "", "")
        if coverage:
            shown = (
                coverage["placement"],
                f"{coverage['weights']} of {coverage['weights_of']}",
                f"{coverage['inputs']} of {coverage['inputs_of']}",
            )
        note = " ".join(row["note"].split()).replace("|", "\\|")
        result = "quantized, loaded, evaluated" if row["result"] == "ok" else row["result"]
        name = row["model"].rpartition("/")[2]
        cells = (name, row.get("size", ""), *shown, f"{result}: {note}" if note else result)
        lines.append(f"| {' | '.join(map(str, cells))} |\n")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing and write the page; 1 where a network failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="these networks only, e.g. timm/resnet10t")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "models.md")
    cache = Path(tempfile.gettempdir()) / "synq_fast_models.jsonl"
    parser.add_argument("--cache", type=Path, default=cache, help="finished rows (%(default)s)")
    parser.add_argument("--again", action="store_true", help="make finished rows again")
    parser.add_argument("--page", action="store_true", help="write what is finished, try nothing")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=120.0, help="limit for each network")
    parser.add_argument("--gibibytes", type=float, default=12.0, help="limit for each network")
    options = parser.parse_args(arguments)
    names = options.names or every_name()
    rows = {} if options.again else read(options.cache)
    missing = (
        []
        if options.page
        else [n for n in names if rows.get(n, {}).get("result") not in ("ok", "refused")]
    )
    os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "tools")))
    _CONTEXT.set_forkserver_preload(["try_model", "timm"])
    threads = max(1, (os.cpu_count() or 1) // options.workers)
    with ThreadPoolExecutor(options.workers) as pool, options.cache.open("a") as cache_file:
        limits = (options.seconds, options.gibibytes, threads)
        waiting = [pool.submit(attempt, name, *limits) for name in missing]
        for count, job in enumerate(as_completed(waiting), 1):
            row = job.result()
            rows[row["model"]] = row
            cache_file.write(json.dumps(row) + "\n")
            cache_file.flush()
            done = f"{count}/{len(missing)} {row['model']}: {row['result']} {row['note']}"
            print(done, file=sys.stderr)
    made = [rows[name] for name in names if name in rows]
    options.output.write_text(render(made), encoding="utf-8")
    return int(any(row["result"] == "failed" for row in made))


if __name__ == "__main__":
    sys.exit(main())
