"""Inject faults into training runs and their files, and count lost runs and steps.

    python benchmarks/faults.py                                 all faults; prints a table
    python benchmarks/faults.py --tries 20 --only power         fewer tries, one fault
    python benchmarks/faults.py --record faults.json            continue where it was stopped

Each fault is injected into a small run that writes a checkpoint after every step. The run is then
resumed. It counts as lost unless its final weights and its history equal those of an undisturbed
run. Child processes are forked: Linux and macOS only. Disks of each size are mounted in memory,
which needs the rights to do so.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import fault_disks as disks
import fault_kills as kills
import torch
import typer
from fault_runs import KINDS, PAIR, Bench, Outcome
from rich.console import Console
from rich.table import Table
from typer import Option

from pyro_vae.runtime.files import write_json

# A trial of each fault, given its number.
FAULTS: dict[str, Callable[[Bench, int], Outcome | None]] = {
    **{f"SIGKILL at random times, {kind}": lambda bench, _, kind=kind: kills.at_random(bench, kind)
       for kind in KINDS},
    f"SIGKILL at random times, {PAIR}": lambda bench, _: kills.of_two_processes(bench),
    "SIGKILL before each operation on files": kills.at_each_stage,
    "power loss after each operation on files": disks.power_fails,
    "a disk of each size at each stage": disks.disk_of_each_size,
    "a file size limit": lambda bench, _: disks.disk_full(bench),
    "a flipped bit": lambda bench, _: disks.damaged(bench, disks.flip),
    "a truncated file": lambda bench, _: disks.damaged(bench, disks.truncate),
    "a pickle in place of a file": lambda bench, _: disks.damaged(bench, disks.pickled),
    "two runs in one folder": kills.two_runs,
    "the folder vanishes": lambda bench, _: kills.folder_vanishes(bench),
}  # fmt: skip


def main(
    tries: Annotated[int, Option(help="Number of tries of each fault")] = 150,
    seed: Annotated[int, Option(help="Random seed of times, bytes and sizes")] = 0,
    only: Annotated[str, Option(help="Inject the faults with this text in their names")] = "",
    record: Annotated[Path | None, Option(help="JSON file of the outcomes of all trials")] = None,
) -> None:
    """Inject every fault and print the losses."""
    console, started = Console(width=100), time.perf_counter()
    torch.set_num_threads(1)  # before the first fork
    saved = json.loads(record.read_text()) if record is not None and record.exists() else {}
    columns = ("tries", "runs", "runs lost", "steps lost", "files corrupt")
    table = Table("fault", *columns)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), seed)
        bench.undisturbed()
        for fault, trial in FAULTS.items():
            if only not in fault:
                continue
            entry = saved.setdefault(fault, {"trials": 0, "is_complete": False, "outcome": {}})
            total = Outcome(**entry["outcome"])
            while total.tried < tries and not entry["is_complete"]:
                bench.start(fault, entry["trials"])
                outcome = trial(bench, entry["trials"])
                if outcome is None:
                    entry["is_complete"] = True
                else:
                    total.add(outcome)
                    entry["trials"] += 1
                entry["outcome"] = asdict(total)
                if record is not None:
                    write_json(record, saved)
            _, *losses = asdict(total).values()
            table.add_row(fault, *map(str, (total.tried, entry["trials"], *losses)))
            console.print(f"{fault}: done at {time.perf_counter() - started:.0f} s")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
