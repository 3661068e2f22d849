"""The conclusion, in plain words, by rules that stand here before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence

from headstart.compare.contenders import BASELINE, FEDAVG
from headstart.compare.leaderboard import Row
from headstart.methods import LocalOnly
from headstart.studies.evidence import Claim
from headstart.tables import shown
from headstart.tasks import Metric
from headstart.verdicts import LEAST_SEEDS, Decision, Difference

LOCAL = LocalOnly.__name__


class Speech:
    """How differences of a metric are said."""

    def __init__(self, metric: Metric) -> None:
        self.metric, self.share = metric, metric.unit == "share"

    def change(self, value: float) -> str:
        """`+1.3`: points of a share, or units of the metric."""
        shown_value = f"{100 * value:+.1f}" if self.share else f"{value:+.3g}"
        return shown_value.replace("inf", "∞")

    @property
    def unit(self) -> str:
        """Of a difference."""
        return "points" if self.share else self.metric.name

    @property
    def positive(self) -> str:
        """The unit of differences, and that more is better."""
        return f" (in {self.unit})" if self.metric.higher_is_better else f" (by how much {self.metric.name} is lower)"

    def all(self, rows: Sequence[Row]) -> str:
        """Methods with their differences."""
        return ", ".join(f"{row.name} {self.change(row.versus.mean)}" for row in rows)

    def interval(self, low: float, high: float) -> str:
        """Of a difference: `[+1.2, +3.4]`."""
        return f"[{self.change(low)}, {self.change(high)}]"

    def difference(self, found: Difference) -> str:
        """With both intervals."""
        seeds, clients = (self.interval(*each) for each in (found.over_seeds, found.over_clients))
        return f"{self.change(found.mean)} {self.unit}, {seeds} over {found.seeds} seeds, {clients} over clients"


def claims(rows: Sequence[Row], metric: Metric) -> tuple[Claim, ...]:
    """The questions of the title, each with its decision, by the leaderboard's rule, and its evidence."""
    speech, by_name = Speech(metric), {row.name: row for row in rows}
    made = [
        Claim(
            "Personalization helps: FedAvg + fine-tuning is better than FedAvg, not personalized",
            None,
            _against(by_name[FEDAVG]),
            (f"{FEDAVG}: {speech.difference(by_name[FEDAVG].versus)}", _harm(by_name[BASELINE])),
        )
    ]
    if LOCAL in by_name:
        made.append(
            Claim(
                "Learning together helps: FedAvg + fine-tuning is better than training alone",
                None,
                _against(by_name[LOCAL]),
                (f"{LOCAL}: {speech.difference(by_name[LOCAL].versus)}",),
            )
        )
    ahead, level, behind = _others(rows)
    if ahead or level or behind:
        decision: Decision = "holds" if ahead else "not decided" if level else "does not hold"
        evidence = [f"{row.name}: {speech.difference(row.versus)}" for row in ahead]
        evidence += [f"not decided: {', '.join(row.name for row in level)}"] if level else []
        text = "Some method is better than FedAvg + fine-tuning at equal cost"
        made.append(Claim(text, None, decision, tuple(evidence)))
    return tuple(made)


def conclusion(rows: Sequence[Row], metric: Metric) -> list[str]:
    """Sentences that answer the questions, for someone who reads nothing else."""
    speech, by_name = Speech(metric), {row.name: row for row in rows}
    tuned, plain = by_name[BASELINE], by_name[FEDAVG]
    helps = _against(plain)
    opening = {
        "holds": "For these clients, personalization helps",
        "does not hold": "For these clients, personalization does harm",
        "not decided": "For these clients it is not decided whether personalization helps",
    }[helps]
    said = [
        f"{opening}: FedAvg's best model has {metric.name} {shown(metric, plain.personalized.mean)} as it is, and its"
        f" best model to fine-tune {shown(metric, tuned.personalized.mean)} after it. Against the"
        f" model that it starts from, fine-tuning makes {speech.difference(tuned.gain)}. {_harm(tuned)}"
    ]
    ahead, level, behind = _others(rows)
    if ahead:
        said.append(f"Better than well-tuned FedAvg + fine-tuning at equal cost{speech.positive}: {speech.all(ahead)}.")
    elif level or behind:
        said.append("No method is shown to be better than well-tuned FedAvg + fine-tuning at equal cost.")
    if behind:
        said.append(f"Worse{speech.positive}: {speech.all(behind)}.")
    if level:
        said.append(
            f"Not decided{speech.positive}: {speech.all(level)}. None of these leads by more than"
            f" {speech.change(max(row.versus.most for row in level))}, the end of an interval of 95 %."
        )
    if ahead or level or behind:
        answer = _just_fine_tuning(helps, tuned, plain, ahead, level)
        said.append(f"How much of personalization is just fine-tuning? {answer}")
    if tuned.versus.seeds < LEAST_SEEDS:
        said.append(
            f"With {tuned.versus.seeds} seeds nothing is decided, whatever it looks like; it takes {LEAST_SEEDS}."
        )
    return said


def _just_fine_tuning(helps: Decision, tuned: Row, plain: Row, ahead: Sequence[Row], level: Sequence[Row]) -> str:
    if helps != "holds":
        shown_to = "is not shown to gain anything over" if helps == "not decided" else "loses against"
        beyond = f"; what {ahead[0].name} gains over it is something else" if ahead else ""
        return f"None that is decided: fine-tuning {shown_to} FedAvg as it is{beyond}."
    if ahead:
        best = ahead[0]
        gained, most = (row.personalized.mean - plain.personalized.mean for row in (tuned, best))
        return f"{100 * gained / most:.0f} % of what {best.name}, the best that is decided, gains over FedAvg as it is."
    if level:
        return "Not decided; all of it, as far as these runs can tell."
    return "All of it: every other method is worse."


def _others(rows: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """Those beside FedAvg that are better, not decided, worse."""
    others = [row for row in rows if row.name not in (BASELINE, FEDAVG)]
    ahead, level, behind = ([row for row in others if row.decided == sign] for sign in (1, 0, -1))
    return ahead, level, behind


def _against(other: Row) -> Decision:
    """Whether FedAvg + fine-tuning is better than this."""
    return "holds" if other.decided < 0 else "does not hold" if other.decided > 0 else "not decided"


def _harm(row: Row) -> str:
    beyond = "more than chance explains" if row.beyond_chance else "no more than chance explains"
    return (
        f"{100 * row.hurt:.1f} % of the clients end worse than that model was for them before; chance alone would make"
        f" {100 * row.by_chance:.1f} %: {beyond}."
    )
