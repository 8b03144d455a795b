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
    from firstline.leaderboard.pairs import differences

    store = Store(results)
    records = [r for r in sound_records(store) if r.vector == "evasion" and r.status == "ok"]
    known = {r.defense_text for r in records}
    for name in (a, b):
        if name not in known:
            raise not_found(f"defense with evasion records in {results}", name, known)
    found = differences(records, store.outcomes, [(a, b)])
    if json:
        say_json(
            [
                {
                    **{k: v for k, v in d._asdict().items() if k not in ("a", "b", "first", "second")},
                    a: d.first,
                    b: d.second,
                }
                for d in found
            ]
        )
        return
    say(f"A: {a}\nB: {b}\n")
    lines = [
        [
            f"{d.first:.1%}",
            f"{d.second:.1%}",
            str(d.only_first),
            str(d.only_second),
            f"{d.p:.2g}",
            str(d.n),
            f"{d.task} · {d.threat}",
        ]
        for d in found
    ]
    say(table(["A", "B", "ONLY A", "ONLY B", "P (HOLM)", "N", "ROBUST ACCURACY, WORST CASE"], lines))
