"""The house stands as docs/architecture.md draws it: imports run down the floors only."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "pyro_vae"
FLOORS = [
    {"parts", "pairs", "batches", "elpd", "surroundings", "capture", "folders", "distributed"}
    | {"progress", "streams", "memory", "products", "rates"},
    {"networks", "datasets", "importance", "supports", "annealing", "distributions", "spherical"}
    | {
        "transforms",
        "sites",
        "arguments",
        "lowering",
        "updates",
        "hmc",
        "trees",
        "signals",
        "failures",
    },
    {"data", "checkpoints", "entrywise", "flexible_priors", "missing", "tables", "layout"}
    | {"compiled_step", "plates"},
    {"counts", "priors", "guides", "checks", "programs", "compiler", "runs"} | {"identity"},
    {"likelihoods", "traces", "optimizer_state", "pathwise"},
    {"vae", "resuming"},
    {"ladder", "mixed"},
    {"objectives", "svi", "blocks", "calibration", "collapse", "gaps", "annealed_importance"},
    {"training", "evaluation", "inspection", "plots", "trust"},
    {"reports", "pages", "mcmc"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "pyro_vae":
            yield from (a.name if a.name in FLOOR_OF else "__init__" for a in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyro_vae."):
            yield node.module.removeprefix("pyro_vae.")
        elif isinstance(node, ast.Import):
            yield from ("__init__" for a in node.names if a.name == "pyro_vae")


def test_every_room_has_a_floor():
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(FLOOR_OF)


def test_imports_run_down():
    up = [
        f"{path.stem} imports {room}"
        for path in PACKAGE.glob("*.py")
        for room in imported_rooms(path)
        if FLOOR_OF[room] >= FLOOR_OF[path.stem]
    ]
    assert not up
