"""What the page of a comparison says beside its tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headstart.reports.format import format_count
from headstart.studies.compare.further import at_edges
from headstart.studies.compare.halving import FURTHER, rungs
from headstart.studies.compare.methods import FEDAVG, SERVERS
from headstart.studies.compare.protocol import FIRST_STAGE_SHARE, Compared, Protocol


def examples_note(adapt_examples: float | None, support_sizes: np.ndarray) -> str:
    """What test clients learn from.

    adapt_examples: of the data; None for all of a client's examples. support_sizes: `[clients]`: how many that are.
    """
    least, middle, most = (f"{size:,.0f}" for size in np.quantile(support_sizes, (0.25, 0.5, 0.75)))
    have = f"{support_sizes.mean():,.0f} in the mean, half of the clients from {least} to {most} (median {middle})"
    if adapt_examples is None:
        return f"Clients learn from all of their local training (support) examples: {have}."
    cut = f"at most {adapt_examples:,.0f}" if adapt_examples >= 1 else f"{adapt_examples:.0%}"
    return (
        f"Clients are cut to {cut} of their local training (support) examples (data.adapt_examples): {have}. With fewer"
        " examples personalization gains less; gains here are not those of clients with all of theirs."
    )


def notes_of(protocol: Protocol, compared: Compared, support_sizes: np.ndarray) -> tuple[str, ...]:
    """What a page says beside its tables: how settings were chosen, of whom it is, and what is at an edge."""
    two = [name for name, entry in compared.entries.items() if len(entry.stages) > 1]
    return (
        f"Every run may use the client compute (floating-point operations) of {protocol.budget} rounds of FedAvg with"
        f" one epoch. {_search(protocol)} Results are of {format_count(protocol.seeds, 'other seed')}, and test clients"
        " are measured once. All is of one split of the clients.",
        f"The clients' learning rate ({_listed(compared.learning_rates)}) and the server's optimizer"
        f" ({'; '.join(SERVERS)}; its rate decays to zero by a cosine) run through the same values for every method;"
        f" {FEDAVG} is chosen by its initial value, everything else by its personalized one, at the best rate"
        f" ({_listed(compared.personal_rates)}) and number of epochs (0 to {protocol.epochs}) of personalization, which"
        " are chosen again in every seed on validation clients.",
        "A test client was never seen in training. It begins from what the server would send it (its own choice among"
        " the models, where there are several; an untrained head, where heads stay with the clients), and trains as"
        " the method says: everything, its head alone, or pulled back to where it began. That is not the setting of"
        " FedPer, FedRep, FedBABU, Ditto and APFL, which are made for clients that take part"
        f"{_on_participants(compared)}.",
        examples_note(protocol.base.data.adapt_examples, support_sizes),
        *(f"{name}: {FIRST_STAGE_SHARE:.0%} of the budget in the first stage." for name in two),
        *_rungs(compared, protocol),
        *_edges(compared),
        *(f"{name} is left out: {reason}." for name, reason in compared.left_out.items()),
    )


def _search(protocol: Protocol) -> str:
    """How settings are chosen."""
    first, *rest = rungs(protocol.tries, protocol.tuning_seeds)
    steps = "".join(f", then the {rung.settings} best with {rung.seeds} seeds" for rung in rest)
    return (
        f"Each method tries {first.settings} settings (all it has if those are fewer, less those of which one round"
        f" exceeds the budget) and {FURTHER} more, beyond an edge that suited best or else between two values, with 1"
        f" seed{steps} (successive halving), on validation clients and the full budget. What a method does not need for"
        " settings goes into further seeds of its last rung, so that the search costs all alike."
    )


def _rungs(compared: Compared, protocol: Protocol) -> list[str]:
    """A sentence on the methods whose search had other rungs than most."""
    first, *rest = rungs(protocol.tries, protocol.tuning_seeds)
    usual = (first._replace(settings=first.settings + FURTHER), *rest)
    others = [
        f"{name} {', '.join(f'{rung.settings} with {rung.seeds}' for rung in each)}"
        for name, each in compared.rungs.items()
        if tuple(each) != usual
    ]
    return [f"Settings at each rung, and their seeds: {'; '.join(others)}; all others as above."] if others else []


def _listed(learning_rates: Sequence[float]) -> str:
    return ", ".join(f"{learning_rate:g}" for learning_rate in learning_rates)


def _edges(compared: Compared) -> list[str]:
    """Sentences on what was chosen at an edge of its candidates."""
    personal = {
        name: each.result
        for name, each in compared.entries.items()
        if each.method.personalizes and each.method.personal_grid is None
    }
    trained = {
        name: at_edges(each.settings, compared.tried[name])
        for name, each in compared.entries.items()
        if name in compared.tried
    }
    at = {
        f"{setting.replace('_', ' ').capitalize()}, at an edge of what was tried,": [
            name for name, settings in trained.items() if setting in settings
        ]
        for setting in dict.fromkeys(setting for settings in trained.values() for setting in settings)
    }
    at |= {
        "The most epochs of personalization, in some seed,": [
            name for name, result in personal.items() if result.epochs.max() == result.curves.shape[2] - 1
        ],
        "The largest learning rate of personalization, in some seed,": [
            name for name, result in personal.items() if result.personal_rates.max() == max(compared.personal_rates)
        ],
    }
    more = "Beyond that edge they may do better."
    return [f"{what} suited best: {', '.join(names)}. {more}" for what, names in at.items() if names]


def _on_participants(compared: Compared) -> str:
    if any(entry.participants for entry in compared.entries.values()):
        return ": these have a table of their own"
    return ", of whom none are measured here"
