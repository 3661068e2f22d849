"""What is checked, and put on record, before the folder of a run is touched."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from headstart._version import __version__
from headstart.data.federation import Federation
from headstart.data.fingerprint import combined, fingerprint
from headstart.errors import UserError
from headstart.experiment.code import code_digests, model_digest
from headstart.experiment.experiment import Centralized, Experiment, Stage
from headstart.experiment.serialization import to_json
from headstart.experiment.setup import Prepared, in_memory
from headstart.fields import MOST_SEED, refuse
from headstart.learning.personalization import Personalization
from headstart.models.zoo import as_given
from headstart.runs import checkpoint
from headstart.training import cluster
from headstart.training.seed_run import Options, initial_params, start_file

MOST_SEEDS = 10_000


def check_arguments(experiment: Any, federation: Any, seeds: Any, options: Any) -> None:
    """Refuse what has not the type that Python does not ask for, and seeds beyond those that make different runs.

    Raises:
        UserError: for all of it.
    """
    given = (
        ("experiment", experiment, Experiment),
        ("options", options, Options),
        ("federation", federation, Federation),
    )
    problems = [
        f"{name} is a {type(value).__name__}, but must be a headstart.{kind.__name__}"
        for name, value, kind in given
        if not (isinstance(value, kind) or (value is None and name == "federation"))
    ]
    whole = isinstance(seeds, int | np.integer) and not isinstance(seeds, bool)
    if not (whole and 1 <= seeds <= MOST_SEEDS):
        problems.append(f"seeds is {seeds!r}, but must be a whole number from 1 to {MOST_SEEDS}")
    elif isinstance(experiment, Experiment) and experiment.seed + seeds - 1 > MOST_SEED:
        problems.append(f"the last of {seeds} seeds from {experiment.seed} on would be beyond {MOST_SEED}; begin lower")
    refuse(problems)


def check_start(prepared: Prepared, out: Path, seeds: int) -> None:
    """Try the parameters that new seeds start from, before the run's folder is touched.

    Raises:
        UserError: if there are none, or they are of another model.
    """
    experiment = prepared.experiment
    if experiment.start is None or not cluster.is_first():
        return
    params = jax.eval_shape(prepared.model.init, jax.random.key(0))
    for seed in range(experiment.seed, experiment.seed + seeds):
        if not os.path.isdir(out / f"seed-{seed}"):
            initial_params(experiment, seed, params)


def decided_in_words(given: Experiment, experiment: Experiment) -> list[str]:
    """What was decided that a user may not expect, in sentences."""
    recipe = experiment.personalization
    sentences = [
        f"stage {after.name!r} has a cohort of {after.cohort}, all training clients that there are"
        for before, after in zip(given.stages, experiment.stages, strict=True)
        if isinstance(before, Stage) and isinstance(after, Stage) and before.cohort > after.cohort
    ]
    if recipe.pulls is None and recipe.steps is not None and recipe.epochs != Personalization.epochs:
        sentences.append(f"personalization counts {recipe.steps} steps; its {recipe.epochs} epochs are not used")
    return sentences


def own_code(prepared: Prepared) -> dict[str, Any]:
    """The digests of the user's own code in an experiment."""
    code: dict[str, Any] = {"code": code_digests(prepared.experiment)}
    if prepared.experiment.model is not None and in_memory(prepared.experiment.model):
        code["model"] = model_digest(as_given(prepared.model), prepared.federation)
    return code


def starts(experiment: Experiment, seeds: int) -> dict[str, Any]:
    """The digests of the parameters that seeds start from, by seed where each has its own; of files that are there."""
    if experiment.start is None:
        return {}
    own = range(experiment.seed, experiment.seed + seeds) if "{seed}" in experiment.start else ["all"]
    digests = {}
    for seed in own:
        with suppress(UserError):  # a seed that has begun needs it no more
            digests[str(seed)] = checkpoint.digest_of(start_file(experiment.start, seed))
    return {"start": digests}


def check_together(prepared: Prepared, seeds: int, options: Options) -> None:
    """Several processes need stages with clients, and all of them the same work."""
    if cluster.size() == 1:
        return
    experiment, federation = prepared.experiment, prepared.federation
    stateful = [stage.name for stage in experiment.stages if stage.method.is_stateful]
    if stateful:
        raise UserError(f"in the stage {stateful[0]!r} clients keep something, which one process does; run it alone")
    central = [stage.name for stage in experiment.stages if isinstance(stage, Centralized)]
    if central:
        raise UserError(f"the stage {central[0]!r} is centralized, which one process trains; run it without a cluster")
    # Where the data lie may differ from machine to machine.
    placeless = replace(experiment, data=replace(experiment.data, source=Path(experiment.data.source).name))
    alike = (
        replace(options, checkpoint_seconds=0.0),
        seeds,
        jax.__version__,
        __version__,
        jax.dtypes.canonicalize_dtype(float).name,
    )
    mine = combined([to_json(placeless), repr(alike), fingerprint(federation)])
    if cluster.any_of(mine != cluster.broadcast(mine)):
        raise UserError(
            "the processes of the cluster have not the same experiment, data, options or versions; start all with the"
            " same command, but for --process-id"
        )
