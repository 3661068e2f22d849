"""The conclusion in plain words, by rules that are fixed before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from headstart.learning.tasks import Metric
from headstart.methods import LocalOnly
from headstart.reports.format import GainFormat, format_count, format_value, format_worse
from headstart.statistics.verdicts import LEAST_SEEDS, Decision
from headstart.studies.compare.decisions import Verdict, compared_at_once, verdict, why
from headstart.studies.compare.leaderboard import GroupGain, Row
from headstart.studies.compare.methods import BASELINE, FEDAVG
from headstart.studies.evidence import Claim

LOCAL = LocalOnly.title
DECISIONS: dict[int, Decision] = {1: "holds", -1: "does not hold", 0: "inconclusive"}
_VERDICTS = {1: "better", -1: "worse", 0: "inconclusive"}
APART = "although the interval by itself excludes zero"


def claims(rows: Sequence[Row], metric: Metric) -> tuple[Claim, ...]:
    """The questions of the title, each with its decision, by the leaderboard's rule, and its evidence."""
    formats, by_name = GainFormat(metric), {row.name: row for row in rows}
    tuned, plain = by_name[BASELINE], by_name[FEDAVG]
    helps, better = _fine_tuning_helps(tuned), _beaten(plain)
    of_one = f"personalized less initial, of one model: {formats.difference(tuned.gain)}"
    found = [
        Claim(
            "Fine-tuning helps: it makes the model that it starts from better",
            None,
            DECISIONS[helps.side],
            (_noted(of_one, helps, rows), _harm(tuned, formats)),
        ),
        Claim(
            "FedAvg + fine-tuning is better than FedAvg (global model), the best there is without personalization",
            None,
            DECISIONS[better.side],
            (_noted(f"FedAvg + fine-tuning less {FEDAVG}: {_tuned_over(plain, formats)}", better, rows),),
        ),
    ]
    if LOCAL in by_name:
        better = _beaten(by_name[LOCAL])
        found.append(
            Claim(
                "Federated over local-only training: FedAvg + fine-tuning is better than local training alone",
                None,
                DECISIONS[better.side],
                (_noted(f"FedAvg + fine-tuning less {LOCAL}: {_tuned_over(by_name[LOCAL], formats)}", better, rows),),
            )
        )
    ahead, level, behind = _others(rows)
    if ahead or level or behind:
        decision: Decision = "holds" if ahead else "inconclusive" if level else "does not hold"
        evidence = [f"{row.name}: {formats.difference(row.versus)}" for row in ahead]
        close = [row.name for row in level if not row.doubt]
        evidence += [f"inconclusive: {', '.join(close)}"] if close else []
        evidence += [
            _noted(f"inconclusive {APART}: {row.name} {formats.difference(row.versus)}", row.verdict, rows)
            for row in level
            if row.doubt
        ]
        text = "Some method is better than FedAvg + fine-tuning at equal client compute in training"
        found.append(Claim(text, None, decision, tuple(evidence)))
    return tuple(found)


def conclusion(
    rows: Sequence[Row], metric: Metric, groups: Sequence[GroupGain] = (), left_out: Mapping[str, str] | None = None
) -> list[str]:
    """Sentences that answer the questions, for someone who reads nothing else.

    None of them contradicts an interval: where one excludes zero and nothing is decided, the reason stands beside it.

    groups: gains of clients by their number of examples. left_out: the reason, by the name of a method that was.
    """
    formats, by_name = GainFormat(metric), {row.name: row for row in rows}
    sentences = [_fine_tuning(rows, formats), _harm(by_name[BASELINE], formats), *_by_data_size(groups, formats)]
    ahead, level, behind = _others(rows)
    if ahead or level or behind:
        sentences += [*_beside_fine_tuning(rows, formats), *_beside_fedavg(rows, formats)]
        answer = _just_fine_tuning(rows, formats)
        sentences += [f"How much of personalization is just fine-tuning? {answer}", _costs(rows)]
    if left_out:
        sentences.append(f"Left out: {'; '.join(f'{name}, since {reason}' for name, reason in left_out.items())}.")
    seeds = by_name[BASELINE].seeds
    if seeds < LEAST_SEEDS:
        sentences.append(
            f"With {format_count(seeds, 'seed')} nothing is decided, whatever it looks like; it takes {LEAST_SEEDS}."
        )
    return sentences


def on_participants(rows: Sequence[Row], metric: Metric) -> list[str]:
    """Sentences on clients that took part in training, by the rules of those on new ones.

    rows: of the leaderboard on these clients.
    """
    formats, by_name = GainFormat(metric), {row.name: row for row in rows}
    helps, opening = _fine_tuning_helps(by_name[BASELINE]), "On clients that took part in training"
    decided = {1: "fine-tuning helps", -1: "fine-tuning does harm", 0: "it is inconclusive whether fine-tuning helps"}
    gain = _noted(formats.difference(by_name[BASELINE].gain), helps, rows)
    sentences = [
        f"{opening}, each with what it kept and measured on rows that training did not use, {decided[helps.side]}:"
        f" {gain} over the model that it starts from."
    ]
    if any(_others(rows)):
        sentences.append(f"{opening}, beside others: {' '.join(_beside_fine_tuning(rows, formats))}")
    return sentences


def _fine_tuning_helps(tuned: Row) -> Verdict:
    """Whether fine-tuning makes the model that it starts from better, or worse: a question by itself."""
    return verdict(tuned.gain, seeds=tuned.seeds, lost=tuned.lost > 0, reference_lost=tuned.lost > 0)


def _noted(text: str, decided: Verdict, rows: Sequence[Row]) -> str:
    """A text, with the reason where its interval alone would decide and it is inconclusive."""
    return f"{text} ({_why(decided, rows)})" if decided.reason else text


def _why(decided: Verdict, rows: Sequence[Row]) -> str:
    return why(decided.reason, seeds=rows[0].seeds, at_once=compared_at_once(len(rows)))


def _fine_tuning(rows: Sequence[Row], formats: GainFormat) -> str:
    metric, by_name = formats.metric, {row.name: row for row in rows}
    tuned, plain = by_name[BASELINE], by_name[FEDAVG]
    helps = _fine_tuning_helps(tuned)
    opening = {
        1: "For these clients, fine-tuning helps",
        -1: "For these clients, fine-tuning does harm",
        0: "For these clients it is inconclusive whether fine-tuning helps",
    }[helps.side]
    values = tuned.initial, tuned.personalized, plain.personalized
    before, after, best = (format_value(metric, each.mean) for each in values)
    gain = _noted(formats.difference(tuned.gain), helps, rows)
    sentence = f"{opening}: the model that it starts from has {metric.name} {before}, and {after} after it, {gain}."
    if plain.initial == tuned.initial:
        return f"{sentence} That model is FedAvg's best global model, too."
    beaten = _beaten(plain)
    decided = ": ".join(filter(None, (_VERDICTS[beaten.side], _why(beaten, rows))))
    return (
        f"{sentence} FedAvg's best global model is another one, with {metric.name} {best}: FedAvg + fine-tuning less"
        f" that is {_tuned_over(plain, formats)} ({decided})."
    )


def _by_data_size(groups: Sequence[GroupGain], formats: GainFormat) -> list[str]:
    if len(groups) < 2:
        return []
    few, many = (
        f"{formats.difference(group.gain)} for the {group.clients} clients with {group.size:.0f} local training"
        " examples"
        for group in (groups[0], groups[-1])
    )
    return [f"By data size (means): the gain from fine-tuning over the model that it starts from is {few}, and {many}."]


def _beside_fine_tuning(rows: Sequence[Row], formats: GainFormat) -> list[str]:
    ahead, level, behind = _others(rows)
    unit = f" (in {formats.unit})"
    sentences = [
        "No method is shown to be better than well-tuned FedAvg + fine-tuning at equal client compute in training."
    ]
    if ahead:
        sentences = [
            f"Better than well-tuned FedAvg + fine-tuning at equal client compute{unit}: {_listed(ahead, formats)}."
        ]
    sentences += [f"Worse{unit}: {_listed(behind, formats)}."] if behind else []
    close = [row for row in level if not row.doubt]
    sentences += [f"Inconclusive{unit}: {_listed(close, formats)}."] if close else []
    for decided in dict.fromkeys(row.verdict for row in level if row.doubt):
        which = [row for row in level if row.verdict == decided]
        sentences.append(f"Inconclusive{unit} {APART}, {_why(decided, rows)}: {_listed(which, formats)}.")
    most = _largest_lead(level) if level else math.inf
    if math.isfinite(most):
        lead = f"by more than {formats.amount(most)}" if most > 0 else "at all"
        sentences.append(
            f"None of those that are inconclusive leads {lead} (95 %, one-sided, for all of them at once)."
        )
    return sentences


def _listed(rows: Sequence[Row], formats: GainFormat) -> str:
    """Methods with their differences to FedAvg + fine-tuning."""
    return ", ".join(f"{row.name} {formats.change(row.versus.mean)}" for row in rows)


def _largest_lead(level: Sequence[Row]) -> float:
    """The lead that none of these methods exceeds, after Bonferroni."""
    return max(row.versus.interval(1 - 0.1 / len(level))[1] for row in level)


def _beside_fedavg(rows: Sequence[Row], formats: GainFormat) -> list[str]:
    others = [row for row in rows if row.name != FEDAVG]
    found = []
    for side, word in ((1, "better"), (-1, "worse")):
        names = [row.name for row in others if row.over_fedavg_decided == side]
        found += [f"{word}: {', '.join(names)}"] if names else []
    found = found or ["nothing is decided"]
    for decided in dict.fromkeys(row.over_fedavg_verdict for row in others if row.over_fedavg_doubt):
        which = ", ".join(
            f"{row.name} {formats.change(row.over_fedavg.mean)}" for row in others if row.over_fedavg_verdict == decided
        )
        found.append(f"inconclusive {APART}, {_why(decided, rows)}: {which}")
    return [f"Against FedAvg (global model), without personalization, {'; '.join(found)}."]


def _just_fine_tuning(rows: Sequence[Row], formats: GainFormat) -> str:
    ahead, level, _ = _others(rows)
    (plain,) = (row for row in rows if row.name == FEDAVG)
    gained, helps = -plain.versus.mean, _beaten(plain)
    beyond = f" {ahead[0].name} gains {formats.amount(ahead[0].versus.mean)} more than it." if ahead else ""
    if helps.side < 0:
        return f"Nothing: FedAvg (global model) does better.{beyond}"
    if not helps.side:
        doubt = f"inconclusive {APART}, {_why(helps, rows)}" if helps.reason else "may be nothing"
        found = f"what FedAvg + fine-tuning has over FedAvg (global model), {_tuned_over(plain, formats)}"
        return f"Inconclusive: {found}, {'is ' if helps.reason else ''}{doubt}.{beyond}"
    if ahead:
        share = 100 * gained / (gained + ahead[0].versus.mean)
        return f"{share:.0f} % of what {ahead[0].name}, the best that is decided, gains over FedAvg (global model)."
    if not level:
        return "All of it: every other method that was compared is worse."
    most = max(0.0, _largest_lead(level))
    least = f", and no less than {100 * gained / (gained + most):.0f} % of what the best of them could gain"
    answer = f"All of it, as far as these runs show{least if math.isfinite(most) else ''}."
    leading = [row for row in level if row.doubt and row.versus.mean > 0]
    if leading:
        names, reason = ", ".join(row.name for row in leading), _why(leading[0].verdict, rows)
        answer += f" {names} may gain more: ahead by the interval, though {reason}."
    return answer


def _costs(rows: Sequence[Row]) -> str:
    by_name = {row.name: row for row in rows}
    tuned = by_name[BASELINE]
    least, most = (pick((row for row in rows if row.sent), key=lambda row: row.sent) for pick in (min, max))
    operations = max(row.operations for row in rows)
    # Comparisons of before operations were counted have the examples alone.
    limit = f"{max(row.examples for row in rows):,.0f} gradients of single examples"
    return (
        f"What it costs: clients of every run compute"
        f" {f'{_amount(operations)} floating-point operations' if operations else limit} at most in training."
        f" FedAvg + fine-tuning sends {_megabytes(tuned)} for it in {tuned.rounds:,} rounds; the least"
        f" is {_megabytes(least)} ({least.name}), the most {_megabytes(most)} ({most.name})."
    )


def _megabytes(row: Row) -> str:
    sent = row.sent / 1e6
    return f"{sent:,.0f} MB" if sent >= 10 else f"{sent:.2g} MB"


def _amount(number: float) -> str:
    """A large number in words: `68.2 million`."""
    size, name = (1e9, "billion") if number >= 1e9 else (1e6, "million")
    return f"{number / size:,.4g} {name}"


def _others(rows: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """The methods beside FedAvg that are better than FedAvg + fine-tuning, inconclusive, and worse."""
    others = [row for row in rows if row.name not in (BASELINE, FEDAVG)]
    ahead, level, behind = ([row for row in others if row.decided == sign] for sign in (1, 0, -1))
    return ahead, level, behind


def _beaten(other: Row) -> Verdict:
    """Whether FedAvg + fine-tuning is better than this method."""
    return Verdict(-other.decided, other.doubt)


def _tuned_over(other: Row, formats: GainFormat) -> str:
    """The lead of FedAvg + fine-tuning over this method."""
    return formats.difference(other.versus._replace(mean=-other.versus.mean))


def _harm(row: Row, formats: GainFormat) -> str:
    beyond = "It is more than that in most seeds" if row.beyond_chance else "That neither shows harm nor rules it out"
    return (
        f"{100 * row.harmed:.1f} % of the clients have {format_worse(formats.metric)} after fine-tuning;"
        f" up to {100 * row.by_chance:.1f} % would be expected from test noise if all gained and changed alike."
        f" {beyond}."
    )
