"""The record of a stream as text: what it was, and what its windows say."""

from typing import TYPE_CHECKING

from firstline.benchmark.cli.show_text import table

if TYPE_CHECKING:
    from firstline.benchmark.core.stream_record import StreamRecord


def render_stream(record: "StreamRecord") -> str:
    """Return a stream's record as text: its head, its course, its windows, and the command that serves it again."""
    # Imported here: Numba takes seconds, which no other record should wait for.
    from firstline.benchmark.metrics.stream import course

    shape, told = record.shape, course(record.windows)
    head = [
        ["key", record.key],
        ["task", record.task.text],
        ["defense", record.defense_text],
        ["attack", record.attack.text],
        ["threat", record.threat],
        ["seed", str(record.seed)],
        [
            "shape",
            f"{shape.size} inputs a window, {shape.before} honest ones first; {shape.share:.0%} of an attacked one",
        ],
        ["measured", f"{record.provenance.ended}, firstline {record.provenance.firstline}"],
    ]
    seen = f"after {told.delay} windows" if told.detected else f"never, in {told.delay} windows"
    back = f"after {told.recovery} windows" if told.recovered else f"never, in {told.recovery} windows"
    figures = [
        ["alarm", seen],
        ["false alarms", f"{told.false_alarms} in {told.calm} honest windows"],
        ["service back", back],
        ["accuracy lost at first", f"{told.drop:.4f}"],
        ["accuracy lost, mean", f"{told.loss:.4f}"],
        ["repairs", f"{record.steps} steps, {record.samples} clean rows, {record.seconds:.1f} CPU seconds"],
    ]
    if record.relapse is not None:
        figures.append(["relapse", f"{record.relapse:.4f}"])
    windows = [
        [
            str(number),
            "attacked" if w.attacked else "",
            "alarm" if w.alarm else "",
            f"{w.right} of {w.inputs}",
        ]
        for number, w in enumerate(record.windows)
    ]
    return (
        "\n\n".join(
            [
                table(["STREAM", ""], head),
                table(["COURSE", ""], figures),
                table(["WINDOW", "", "", "RIGHT ANSWERS"], windows),
            ]
        )
        + "\n"
    )
