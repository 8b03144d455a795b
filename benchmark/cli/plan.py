"""firstline plan: what a run would do."""

from firstline.benchmark.cli import options
from firstline.benchmark.cli.options import RESULTS, Json
from firstline.benchmark.cli.show_text import count, duration, say, say_json, table
from firstline.benchmark.core import catalog
from firstline.benchmark.run.estimate import estimate, read_timings
from firstline.benchmark.run.keys import Cell, cell_preimage, key, resolve_device
from firstline.benchmark.run.matrix import expand
from firstline.benchmark.run.runner import Plan, make_plan, workers
from firstline.benchmark.run.store import Store
from firstline.benchmark.run.suite import find_suite


def plan(
    suite: options.Suite = "quick",
    task: options.Task = None,
    defense: options.Defense = None,
    attack: options.Attack = None,
    threat: options.Threat = None,
    seed: options.Seeds = None,
    exclude: options.Exclude = None,
    results: options.Results = RESULTS,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    jobs: options.Jobs = 0,
    json: Json = False,
) -> None:
    """Say which cells of a suite would run, which are reused, which are skipped and why, and how long it takes."""
    chosen = options.selection(task, defense, attack, threat, seed, exclude)
    found, wanted = catalog.load(), find_suite(suite)
    where = resolve_device(device)
    made = make_plan(expand(wanted, found, chosen, where, data_dir), Store(results))
    number = workers(jobs, where)
    seconds, unknown = estimate(made.groups, read_timings(results), number)
    if json:
        say_json(
            {
                "suite": wanted.label,
                "run": [_described(cell) for group in made.groups for cell in group],
                "reuse": [_described(cell) for cell in made.reused],
                "skip": [{"what": s.what, "reason": s.reason} for s in made.matrix.skips],
                "fits": made.fits,
                "estimate_seconds": round(seconds, 1),
            }
        )
        return
    say(f"{wanted.label}: {count(len(made.matrix.cells), 'cell')} on {where}, {count(number, 'worker')}")
    say()
    say(table(["TASK", "DEFENSE", "CELLS", "RUN", "REUSE"], _by_system(made)))
    say()
    if made.matrix.skips:
        reasons: dict[str, int] = {}
        for skip in made.matrix.skips:
            reasons[skip.reason] = reasons.get(skip.reason, 0) + 1
        say(table(["SKIPPED", "WHY"], [[str(n), why] for why, n in reasons.items()]))
        say()
    say(headline(made, seconds, unknown))


def headline(made: Plan, seconds: float, unknown: int) -> str:
    """Return one line about what a plan costs."""
    text = (
        f"{count(made.to_run, 'cell')} and {count(made.fits, 'fit')} to run, {len(made.reused)} reused, "
        f"{len(made.matrix.skips)} skipped"
    )
    if made.failed:
        text += f", {len(made.failed)} of the reused failed (--retry runs them again)"
    if not made.to_run:
        return text + "; nothing to do."
    return f"{text}; about {duration(seconds)}" + (f" ({unknown} never timed)." if unknown else ".")


def _by_system(made: Plan) -> list[list[str]]:
    rows: dict[tuple[str, str], list[int]] = {}
    waiting = {id(cell) for group in made.groups for cell in group}
    for cell in made.matrix.cells:
        row = rows.setdefault((cell.task.text, cell.defense_text), [0, 0, 0])
        row[0] += 1
        row[1 if id(cell) in waiting else 2] += 1
    return [[task, defense, *map(str, numbers)] for (task, defense), numbers in rows.items()]


def _described(cell: Cell) -> dict[str, object]:
    return {
        "task": cell.task.text,
        "defense": cell.defense_text,
        "attack": cell.attack.text,
        "threat": str(cell.threat),
        "seed": cell.seed,
        "key": key(cell_preimage(cell)),
    }
