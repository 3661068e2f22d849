"""The conclusion in plain words, by rules that are fixed before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from headstart.learning.tasks import Metric
from headstart.methods import LocalOnly
from headstart.reports.format import GainFormat, format_count, format_value, format_worse
from headstart.statistics.verdicts import LEAST_SEEDS, Decision, holm
from headstart.studies.compare.leaderboard import GroupGain, Row
from headstart.studies.compare.methods import BASELINE, FEDAVG
from headstart.studies.evidence import Claim

LOCAL = LocalOnly.title
_VERDICTS: dict[Decision, str] = {"holds": "better", "does not hold": "worse", "inconclusive": "inconclusive"}


def claims(rows: Sequence[Row], metric: Metric) -> tuple[Claim, ...]:
    """The questions of the title, each with its decision, by the leaderboard's rule, and its evidence."""
    formats, by_name = GainFormat(metric), {row.name: row for row in rows}
    tuned, plain = by_name[BASELINE], by_name[FEDAVG]
    found = [
        Claim(
            "Fine-tuning helps: it makes the model that it starts from better",
            None,
            _fine_tuning_helps(rows),
            (f"personalized less initial, of one model: {formats.difference(tuned.gain)}", _harm(tuned, formats)),
        ),
        Claim(
            "FedAvg + fine-tuning is better than FedAvg (global model), the best there is without personalization",
            None,
            _helps(plain),
            (f"FedAvg + fine-tuning less {FEDAVG}: {_tuned_over(plain, formats)}",),
        ),
    ]
    if LOCAL in by_name:
        found.append(
            Claim(
                "Federated over local-only training: FedAvg + fine-tuning is better than local training alone",
                None,
                _helps(by_name[LOCAL]),
                (f"FedAvg + fine-tuning less {LOCAL}: {_tuned_over(by_name[LOCAL], formats)}",),
            )
        )
    ahead, level, behind = _others(rows)
    if ahead or level or behind:
        decision: Decision = "holds" if ahead else "inconclusive" if level else "does not hold"
        evidence = [f"{row.name}: {formats.difference(row.versus)}" for row in ahead]
        evidence += [f"inconclusive: {', '.join(row.name for row in level)}"] if level else []
        text = "Some method is better than FedAvg + fine-tuning at equal client compute in training"
        found.append(Claim(text, None, decision, tuple(evidence)))
    return tuple(found)


def conclusion(
    rows: Sequence[Row], metric: Metric, groups: Sequence[GroupGain] = (), left_out: Mapping[str, str] | None = None
) -> list[str]:
    """Sentences that answer the questions, for someone who reads nothing else.

    groups: gains of clients by their number of examples. left_out: the reason, by the name of a method that was.
    """
    formats, by_name = GainFormat(metric), {row.name: row for row in rows}
    sentences = [_fine_tuning(rows, formats), _harm(by_name[BASELINE], formats), *_by_data_size(groups, formats)]
    ahead, level, behind = _others(rows)
    if ahead or level or behind:
        sentences += [*_beside_fine_tuning(ahead, level, behind, formats), *_beside_fedavg(rows, formats)]
        answer = _just_fine_tuning(by_name[BASELINE], by_name[FEDAVG], ahead, level, formats)
        sentences += [f"How much of personalization is just fine-tuning? {answer}", _costs(rows)]
    if left_out:
        sentences.append(f"Left out: {'; '.join(f'{name}, since {reason}' for name, reason in left_out.items())}.")
    seeds = by_name[BASELINE].by_seeds_and_clients.seeds
    if seeds < LEAST_SEEDS:
        sentences.append(
            f"With {format_count(seeds, 'seed')} nothing is decided, whatever it looks like; it takes {LEAST_SEEDS}."
        )
    return sentences


def _fine_tuning_helps(rows: Sequence[Row]) -> Decision:
    """Whether fine-tuning makes the model that it starts from better, or worse.

    The gain of one model is decided as if it stood on the leaderboard in the place of FedAvg (global model), which may
    be another model: corrected for as many comparisons.
    """
    (tuned,) = (row for row in rows if row.name == BASELINE)
    others = [row for row in rows if row.name != BASELINE]
    p_values = [tuned.gain.p if row.name == FEDAVG else row.versus.p for row in others]
    decided = dict(zip((row.name for row in others), holm(p_values), strict=True))[FEDAVG]
    if not decided or tuned.lost or tuned.by_seeds_and_clients.seeds < LEAST_SEEDS:
        return "inconclusive"
    return "holds" if tuned.gain.mean > 0 else "does not hold"


def _fine_tuning(rows: Sequence[Row], formats: GainFormat) -> str:
    opening = {
        "holds": "For these clients, fine-tuning helps",
        "does not hold": "For these clients, fine-tuning does harm",
        "inconclusive": "For these clients it is inconclusive whether fine-tuning helps",
    }[_fine_tuning_helps(rows)]
    metric, by_name = formats.metric, {row.name: row for row in rows}
    tuned, plain = by_name[BASELINE], by_name[FEDAVG]
    values = tuned.initial, tuned.personalized, plain.personalized
    before, after, best = (format_value(metric, each.mean) for each in values)
    sentence = (
        f"{opening}: the model that it starts from has {metric.name} {before}, and {after} after it,"
        f" {formats.difference(tuned.gain)}."
    )
    if plain.initial == tuned.initial:
        return f"{sentence} That model is FedAvg's best global model, too."
    return (
        f"{sentence} FedAvg's best global model is another one, with {metric.name} {best}: FedAvg + fine-tuning less"
        f" that is {_tuned_over(plain, formats)} ({_VERDICTS[_helps(plain)]})."
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


def _beside_fine_tuning(
    ahead: Sequence[Row], level: Sequence[Row], behind: Sequence[Row], formats: GainFormat
) -> list[str]:
    unit = f" (in {formats.unit})"
    sentences = [
        "No method is shown to be better than well-tuned FedAvg + fine-tuning at equal client compute in training."
    ]
    if ahead:
        sentences = [
            f"Better than well-tuned FedAvg + fine-tuning at equal client compute{unit}: {_listed(ahead, formats)}."
        ]
    sentences += [f"Worse{unit}: {_listed(behind, formats)}."] if behind else []
    if level:
        most = _largest_lead(level)
        bound = f" None of these leads by more than {formats.amount(most)} (95 %, for all of them at once)."
        bound = " All of these look worse." if most <= 0 else bound if math.isfinite(most) else ""
        sentences.append(f"Inconclusive{unit}: {_listed(level, formats)}.{bound}")
    return sentences


def _listed(rows: Sequence[Row], formats: GainFormat) -> str:
    """Methods with their differences to FedAvg + fine-tuning."""
    return ", ".join(f"{row.name} {formats.change(row.versus.mean)}" for row in rows)


def _largest_lead(level: Sequence[Row]) -> float:
    """The lead that none of these methods exceeds, after Bonferroni."""
    return max(row.versus.interval(1 - 0.1 / len(level))[1] for row in level)


def _beside_fedavg(rows: Sequence[Row], formats: GainFormat) -> list[str]:
    better, worse = (
        [row.name for row in rows if row.name != FEDAVG and row.over_fedavg_decided == sign] for sign in (1, -1)
    )
    found = [f"better are {', '.join(better)}" if better else "", f"worse are {', '.join(worse)}" if worse else ""]
    answer = "; ".join(filter(None, found)) or "nothing is decided"
    return [f"Against FedAvg (global model), without personalization, {answer}."]


def _just_fine_tuning(tuned: Row, plain: Row, ahead: Sequence[Row], level: Sequence[Row], formats: GainFormat) -> str:
    gained, helps = -plain.versus.mean, _helps(plain)
    beyond = f" {ahead[0].name} gains {formats.amount(ahead[0].versus.mean)} more than it." if ahead else ""
    if helps == "does not hold":
        return f"Nothing: FedAvg (global model) does better.{beyond}"
    if helps == "inconclusive":
        found = _tuned_over(plain, formats)
        return (
            f"Inconclusive: what FedAvg + fine-tuning has over FedAvg (global model), {found}, may be nothing.{beyond}"
        )
    if ahead:
        share = 100 * gained / (gained + ahead[0].versus.mean)
        return f"{share:.0f} % of what {ahead[0].name}, the best that is decided, gains over FedAvg (global model)."
    if not level:
        return "All of it: every other method that was compared is worse."
    most = max(0.0, _largest_lead(level))
    least = f", and no less than {100 * gained / (gained + most):.0f} % of what the best of them could gain"
    return f"All of it, as far as these runs show{least if math.isfinite(most) else ''}."


def _costs(rows: Sequence[Row]) -> str:
    by_name = {row.name: row for row in rows}
    tuned = by_name[BASELINE]
    least, most = (pick((row for row in rows if row.sent), key=lambda row: row.sent) for pick in (min, max))
    return (
        f"What it costs: every run trains on at most {max(row.gradients for row in rows):,.0f} gradients of single"
        f" examples. FedAvg + fine-tuning sends {tuned.sent / 1e6:,.0f} MB for it in {tuned.rounds:,} rounds; the least"
        f" is {least.sent / 1e6:,.0f} MB ({least.name}), the most {most.sent / 1e6:,.0f} MB ({most.name})."
    )


def _others(rows: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """The methods beside FedAvg that are better than FedAvg + fine-tuning, inconclusive, and worse."""
    others = [row for row in rows if row.name not in (BASELINE, FEDAVG)]
    ahead, level, behind = ([row for row in others if row.decided == sign] for sign in (1, 0, -1))
    return ahead, level, behind


def _helps(other: Row) -> Decision:
    """Whether FedAvg + fine-tuning is better than this method."""
    return "holds" if other.decided < 0 else "does not hold" if other.decided > 0 else "inconclusive"


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
