"""Table and sentences of what `headstart bench` measured."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from headstart.bench.measure import Report, Result, Spread, Tried, plural
from headstart.console import echo

WANTED_COST = 1.15
COLUMNS = ("examples/s", "share of\nproducts", "padding", "outside\nprogram", "compile", "personal")


def print_report(console: Console, report: Report) -> None:
    """The machine, a row for every model and number of lanes, and a sentence for every model."""
    product = report.product_flops
    lines = [
        f"{plural(report.devices, 'device')} ({report.device}); float32 matrix products:"
        f" {product.median / 1e9:,.0f} GFLOP/s [{product.low / 1e9:,.0f}, {product.high / 1e9:,.0f}]",
        *(conclusion(report, result) for result in report.results),
    ]
    echo(console, lines[0])
    console.print(_table(report))
    for line in [*clipped(report), *lines[1:], hint(report)]:
        echo(console, line)


def _table(report: Report) -> Table:
    title = f"cohorts of {report.cohort}; medians \\[least, greatest]; measured in {report.seconds:.0f} s"
    table = Table(title=title, padding=0, title_justify="left")
    for number, column in enumerate(("model", "lanes", *COLUMNS)):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for result in report.results:
        for number, tried in enumerate(result.tried):
            first = number == 0
            cost = _interval(result.personalize_cost, "{:.2f}") if first else ""
            cells = result.model if first else "", str(tried.lanes), *_cells(tried), cost
            table.add_row(*cells, style="bold" if first else "", end_section=tried is result.tried[-1])
    return table


def _cells(tried: Tried) -> tuple[str, ...]:
    return (
        _interval(tried.examples_per_second, "{:,.0f}"),
        _interval(tried.machine_share, "{:.2f}"),
        f"{100 * tried.padding:.1f} %",
        f"{100 * max(0.0, tried.outside.median):.1f} %",
        f"{tried.compile_seconds:.1f} s",
    )


def _interval(value: Spread, form: str) -> str:
    median, low, high = (form.format(number) for number in value[:3])
    return f"{median}\n\\[{low}, {high}]"


def conclusion(report: Report, result: Result) -> str:
    """One sentence: how fast, how good that is, and what is best."""
    best, cost = result.best, result.personalize_cost.median
    where = f"each of {report.devices} devices" if report.devices > 1 else "the one device"
    untried = f"; no time to try {' and '.join(map(str, result.untried))}" if result.untried else ""
    costly = f", above the {WANTED_COST} wanted" if cost > WANTED_COST else ""
    return (
        f"{result.model}: {best.examples_per_second.median:,.0f} examples/s, {best.machine_share.median:.2f} of this"
        f" machine's matrix products; best with {plural(best.lanes, 'lane')} on {where}{untried};"
        f" personalizing takes {cost:.2f} times its own arithmetic{costly}"
    )


def clipped(report: Report) -> list[str]:
    """A line if lanes were tried that no client is left for."""
    most = -(-report.cohort // report.devices)
    if all(tried.lanes <= most for result in report.results for tried in result.tried):
        return []
    return [f"Lanes above {most} change nothing: a device has at most {plural(most, 'client')} of a round"]


def hint(report: Report) -> str:
    """A line on how to set what was found best."""
    best = {result.model: result.best.lanes for result in report.results}
    parts = [f"headstart run … --model {name} --lanes {lanes}" for name, lanes in best.items()]
    return f"To use it: {'; '.join(parts)}"
