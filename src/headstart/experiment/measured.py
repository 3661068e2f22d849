"""Who can be measured: clients with local test (query) examples. A run needs some among those that do not train."""

from __future__ import annotations

import numpy as np

from headstart.data.federation import Federation, Split
from headstart.experiment.experiment import Experiment
from headstart.learning.personalization import Personalization


def measurement_problems(experiment: Experiment, federation: Federation, groups: Split) -> list[str]:
    """The complaint about data that would train and then measure nobody, neither validation nor test clients.

    Where the experiment itself leaves nobody to be measured there is none: a model alone may be what is wanted.
    """
    measured = {"validation": groups.validation} | ({"test": groups.test} if experiment.test else {})
    wanted = [clients for clients in measured.values() if len(clients)]
    if not wanted or any(has_test_examples(federation, clients).any() for clients in wanted):
        return []
    counts = " and ".join(f"{len(clients)} {name}" for name, clients in measured.items())
    return [
        f"none of the {counts} clients has a local test (query) example, so nothing could be measured; give clients at"
        " least two examples each, or query examples of their own"
    ]


def measurement_notes(experiment: Experiment, federation: Federation, groups: Split) -> list[str]:
    """Sentences on what a run will not choose or measure, for want of local test examples."""
    recipe, notes = experiment.personalization, []
    is_chosen = recipe.most or recipe.learning_rates[1:]
    if is_chosen and not has_test_examples(federation, groups.validation).any():
        notes.append(
            f"no validation client has local test examples: personalization is not chosen, but is {_unchosen(recipe)}"
        )
    if experiment.test and not has_test_examples(federation, groups.test).any():
        notes.append("no test client has local test examples: nothing is measured on test clients")
    return notes


def _unchosen(recipe: Personalization) -> str:
    if recipe.pulls is not None:
        return f"to the optimum with a pull of {recipe.pulls[recipe.unchosen - 1]:g}"
    return f"{recipe.most} {recipe.unit} with the learning rate {recipe.candidate_rates[0]:g}"


def has_test_examples(federation: Federation, clients: np.ndarray) -> np.ndarray:
    """Bool `[clients]`: which of these clients have local test examples."""
    return np.asarray(federation.sizes)[clients, 1] > 0
