"""The conclusion, in plain words, by rules that stand here before anything is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from headstart.compare.contenders import BASELINE, FEDAVG
from headstart.compare.leaderboard import Row, values_of
from headstart.compare.protocol import Entry
from headstart.studies.evidence import Claim
from headstart.tasks import Metric
from headstart.verdicts import Decision, Difference, difference

LOCAL = "LocalOnly"


class Speech:
    """How values of a metric, and differences of them, are said."""

    def __init__(self, metric: Metric) -> None:
        self.metric, self.share = metric, metric.unit == "share"

    def value(self, value: float) -> str:
        """`71.3 %`, or `0.1234`."""
        return f"{100 * value:.1f} %" if self.share else f"{value:.4g}"

    def change(self, value: float) -> str:
        """`+1.3`: points of a share, or units of the metric."""
        return f"{100 * value:+.1f}" if self.share else f"{value:+.3g}"

    @property
    def unit(self) -> str:
        """Of a difference."""
        return "points" if self.share else self.metric.name

    def interval(self, low: float, high: float, say: Callable[[float], str]) -> str:
        """`[1.2, 3.4]`."""
        return f"[{say(low).removesuffix(' %')}, {say(high).removesuffix(' %')}]"

    def difference(self, found: Difference) -> str:
        """With both intervals."""
        seeds, clients = (self.interval(*each, self.change) for each in (found.over_seeds, found.over_clients))
        return f"{self.change(found.mean)} {self.unit}, {seeds} over {found.seeds} seeds, {clients} over clients"


def claims(entries: Mapping[str, Entry], rows: Sequence[Row], metric: Metric) -> tuple[Claim, ...]:
    """The questions of the title, each with its decision and its evidence."""
    speech, sign = Speech(metric), 1.0 if metric.higher_is_better else -1.0
    by_name = {row.name: row for row in rows}
    tuned = by_name[BASELINE]
    helps = _better(entries, BASELINE, FEDAVG, sign)
    made = [
        Claim(
            "Personalization helps: FedAvg + fine-tuning is better than FedAvg, not personalized",
            None,
            _decision(helps),
            (speech.difference(helps), _harm(tuned)),
        )
    ]
    if LOCAL in entries:
        together = _better(entries, BASELINE, LOCAL, sign)
        made.append(
            Claim(
                "Learning together helps: FedAvg + fine-tuning is better than training alone",
                None,
                _decision(together),
                (speech.difference(together),),
            )
        )
    ahead = [row for row in rows if row.decided > 0 and row.name != BASELINE]
    undecided = [row.name for row in rows if row.decided == 0 and row.name not in (BASELINE, FEDAVG)]
    decision: Decision = "holds" if ahead else "not decided" if undecided else "does not hold"
    evidence = [f"{row.name}: {speech.difference(row.versus)}" for row in ahead]
    evidence += [f"not decided: {', '.join(undecided)}"] if undecided else []
    made.append(Claim("Some method is better than FedAvg + fine-tuning at equal cost", None, decision, tuple(evidence)))
    return tuple(made)


def conclusion(entries: Mapping[str, Entry], rows: Sequence[Row], metric: Metric) -> list[str]:
    """Sentences that answer the questions, for someone who reads nothing else."""
    speech = Speech(metric)
    by_name = {row.name: row for row in rows}
    tuned, plain = by_name[BASELINE], by_name[FEDAVG]
    first = claims(entries, rows, metric)[0].decision
    said = [
        {
            "holds": f"For these clients, personalization helps: fine-tuning FedAvg's model takes {metric.name} from"
            f" {speech.value(plain.personalized[0])} to {speech.value(tuned.personalized[0])}. {_harm(tuned)}",
            "does not hold": f"For these clients, personalization does harm: {metric.name} goes from"
            f" {speech.value(plain.personalized[0])} to {speech.value(tuned.personalized[0])} on average."
            f" {_harm(tuned)}",
            "not decided": "For these clients it is not decided whether personalization helps: fine-tuning FedAvg's"
            f" model takes {metric.name} from {speech.value(plain.personalized[0])} to"
            f" {speech.value(tuned.personalized[0])}, which may be chance. {_harm(tuned)}",
        }[first]
    ]
    ahead = [row for row in rows if row.decided > 0 and row.name != BASELINE]
    behind = [row for row in rows if row.decided < 0 and row.name not in (BASELINE, FEDAVG)]
    level = [row for row in rows if row.decided == 0 and row.name not in (BASELINE, FEDAVG)]
    if ahead:
        best = ", ".join(f"{row.name} ({speech.change(row.versus.mean)})" for row in ahead)
        said.append(f"Better than well-tuned FedAvg + fine-tuning at equal cost, in {speech.unit}: {best}.")
    else:
        said.append("No method is shown to be better than well-tuned FedAvg + fine-tuning at equal cost.")
    if behind:
        said.append(f"Worse: {', '.join(f'{row.name} ({speech.change(row.versus.mean)})' for row in behind)}.")
    if level:
        said.append(f"Not decided: {', '.join(f'{row.name} ({speech.change(row.versus.mean)})' for row in level)}.")
    said += _just_fine_tuning(tuned, plain, ahead, metric) if first == "holds" else []
    return said


def _just_fine_tuning(tuned: Row, plain: Row, ahead: Sequence[Row], metric: Metric) -> list[str]:
    if not ahead:
        return ["How much of it is just fine-tuning? As far as these runs can tell, all of it."]
    best = ahead[0]
    share = (tuned.personalized[0] - plain.personalized[0]) / (best.personalized[0] - plain.personalized[0])
    return [
        f"How much of it is just fine-tuning? {100 * share:.0f} % of what {best.name}, the best, gains over FedAvg"
        f" without personalization ({metric.name})."
    ]


def _better(entries: Mapping[str, Entry], first: str, second: str, sign: float) -> Difference:
    return difference(sign * (values_of(entries[first]) - values_of(entries[second])))


def _decision(found: Difference) -> Decision:
    return {1: "holds", -1: "does not hold", 0: "not decided"}[found.sign]  # type: ignore[return-value]


def _harm(row: Row) -> str:
    beyond = "more than chance explains" if row.beyond_chance else "no more than chance explains"
    return (
        f"{100 * row.hurt:.1f} % of the clients score lower after it than before; chance alone would make"
        f" {100 * row.by_chance:.1f} %: {beyond}."
    )
