"""firstline compare: two defenses on the same examples."""

from typing import Annotated

import typer

from firstline.benchmark.cli.finish import sound_records
from firstline.benchmark.cli.options import RESULTS, Json, Results
from firstline.benchmark.cli.show_text import say, say_json, table
from firstline.benchmark.core.errors import not_found
from firstline.benchmark.run.store import Store


def compare(
    a: Annotated[str, typer.Argument(help="A defense stack, as `firstline status --keys` prints it.")],
    b: Annotated[str, typer.Argument(help="Another one.")],
    results: Results = RESULTS,
    json: Json = False,
) -> None:
    """Compare two defenses under each evasion threat: worst case over attacks, example by example.

    The p-value is McNemar's exact test on the examples that both met, corrected by Holm over the lines.
    """
    # Imported here: scipy takes half a second, which no other command should wait for.
    import numpy as np

    from firstline.benchmark.metrics.rates import holm, mcnemar
    from firstline.leaderboard.worst_case import judge, paired, worst

    store = Store(results)
    everything = [r for r in sound_records(store) if r.vector == "evasion" and r.status == "ok"]
    # Of two records for one place, such as before and after an edit of the defense, the newer counts.
    newest = {
        (r.task.text, r.threat, r.examples, r.defense_text, r.attack.text, r.seed): r
        for r in sorted(everything, key=lambda r: (r.provenance.ended, r.key))
    }
    records = list(newest.values())
    known = {r.defense_text for r in records}
    for name in (a, b):
        if name not in known:
            raise not_found(f"defense with evasion records in {results}", name, known)
    rows, tests = [], []
    for task, threat, examples in sorted({(r.task.text, r.threat, r.examples) for r in records}):
        here = [r for r in records if (r.task.text, r.threat, r.examples) == (task, threat, examples)]
        sides = []
        for name in (a, b):
            by_seed: dict[int, dict[str, object]] = {}
            for r in here:
                if r.defense_text == name:
                    by_seed.setdefault(r.seed, {})[r.attack.text] = judge(store.outcomes(r))
            sides.append({seed: worst(verdicts) for seed, verdicts in by_seed.items()})  # type: ignore[arg-type]
        first, second = paired(*sides)
        if len(first):
            tests.append(mcnemar(first, second))
            rows.append((task, threat, first, second))
    adjusted = holm(np.array(tests)) if tests else np.array([])
    found = [
        {
            "task": task,
            "threat": threat,
            "n": len(x),
            a: float(x.mean()),
            b: float(y.mean()),
            "only_first": int((x & ~y).sum()),
            "only_second": int((y & ~x).sum()),
            "p": float(p),
        }
        for (task, threat, x, y), p in zip(rows, adjusted, strict=True)
    ]
    if json:
        say_json(found)
        return
    say(f"A: {a}\nB: {b}\n")
    lines = [
        [
            f"{row[a]:.1%}",
            f"{row[b]:.1%}",
            str(row["only_first"]),
            str(row["only_second"]),
            f"{row['p']:.2g}",
            str(row["n"]),
            f"{row['task']} · {row['threat']}",
        ]
        for row in found
    ]
    say(table(["A", "B", "ONLY A", "ONLY B", "P (HOLM)", "N", "ROBUST ACCURACY, WORST CASE"], lines))
