"""The central identity on real models and clients: the parts of FedAvg's pseudo-gradient, and exact MAML beside it.

Measured at the untrained model, after a third of training and at its end, on cohorts of training clients that stay the
same along training (arXiv:1909.12488, equation of FedAvg as FedSGD plus FOMAML terms, and claim 1).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from headstart.data.device_data import on_device
from headstart.data.federation import Client, Tree
from headstart.experiment.experiment import Experiment
from headstart.experiment.setup import Prepared
from headstart.learning.rounds import initial_key, seed_key
from headstart.runs import checkpoint
from headstart.statistics.verdicts import LEAST_SEEDS, Decision, decide, t_interval
from headstart.studies.evidence import Claim, Evidence
from headstart.studies.paper.identity_tables import (
    cost_table,
    figures,
    identity_table,
    maml_table,
    share_interval,
    shares_table,
)
from headstart.studies.paper.pseudo_gradients import Local, Measured, measure, parts
from headstart.studies.paper.study import Setting, Study
from headstart.studies.paper.tuning import tuned
from headstart.studies.runner import Runs

COHORT = 20
LENGTHS = (1, 2, 5, 10)
# Rounding in float32, relative to Δ, stays below.
TOLERANCE = 1e-4


def identity(setting: Setting, runs: Runs) -> Evidence:
    """FedAvg trains; at three checkpoints its pseudo-gradient is decomposed, on a cohort for every seed."""
    setting, choices = tuned(setting, runs)
    stage = setting.fedavg()
    trained = {
        rounds: setting.experiment(stage.name, replace(stage, rounds=rounds))
        for rounds in sorted({max(1, stage.rounds // 3), stage.rounds})
    }
    results = runs.finish({f"{stage.name}, {n} rounds": each for n, each in trained.items()}, seeds=runs.seeds)
    runs.with_parameters(trained.values(), range(runs.seeds))
    prepared = runs.prepared(trained[stage.rounds])
    cohorts, sizes = _cohorts(prepared, max(runs.seeds, LEAST_SEEDS))
    measured = measure(
        Local(prepared.task, prepared.model, setting.client_rate, setting.batch_size),
        setting.steps,
        tuple(sorted({k for k in (*LENGTHS, setting.steps) if k <= setting.steps})),
        cohorts,
        (0, *trained),
        lambda rounds, repetition: _params(runs, prepared, trained.get(rounds), repetition % runs.seeds),
    )
    return Evidence(
        "identity",
        "How does the share of the FOMAML terms in FedAvg's pseudo-gradient grow with K, where do they point, and how"
        " far is exact MAML from FOMAML, at what cost?",
        (claim(measured),),
        (identity_table(measured), shares_table(measured), maml_table(measured), cost_table(measured)),
        figures(measured),
        choices,
        _notes(setting, runs.seeds, sizes),
        {name: result.command for name, result in results.items()},
    )


def _notes(setting: Setting, seeds: int, sizes: np.ndarray) -> tuple[str, ...]:
    repetitions, clients = sizes.shape
    batches = -(-sizes // setting.batch_size)
    return (
        f"{repetitions} repetitions, each with a cohort of {clients} training clients of its own and the models of one"
        f" of {seeds} training runs; intervals are 95 % t-intervals over the repetitions. Clients weigh alike and take"
        f" the same K steps with learning rate {setting.client_rate:g} in batches of {setting.batch_size}.",
        f"A client has {np.median(batches):g} batches in the median ({np.median(sizes):g} examples); a longer path"
        " meets the same examples again, and so does FOMAML's query.",
    )


def _cohorts(prepared: Prepared, count: int) -> tuple[list[Client], np.ndarray]:
    """Cohorts of training clients that have examples, and int `[count, clients]`: how many each has."""
    federation, generator = prepared.federation, np.random.default_rng(0)
    part, sizes = federation.training_part, federation.training_sizes
    able = prepared.groups.train[sizes[prepared.groups.train] > 0]
    size = min(COHORT, len(able))
    chosen = np.stack([generator.choice(able, size, replace=False) for _ in range(count)])
    # Only their rows go to the device; all cohorts share the block, so that their programs are compiled once.
    gather = on_device(federation.select(chosen.ravel()))
    return [gather(rows, part) for rows in np.arange(chosen.size).reshape(chosen.shape)], sizes[chosen]


def _params(runs: Runs, prepared: Prepared, experiment: Experiment | None, seed: int) -> Tree:
    """The model at the end of a run; without an experiment, the untrained one that all runs of this seed start from."""
    untrained = prepared.model.init(initial_key(seed_key(seed)))
    if experiment is None:
        return untrained
    return checkpoint.read(runs.ended(experiment, seed), untrained).tree


def claim(measured: Measured) -> Claim:
    """The identity must hold to rounding, and the FOMAML terms must be more than half of Δ(K) at the greatest K."""
    errors = measured.errors.max(axis=(1, 2, 3, 4))
    shares = parts(measured.products).fomaml_share[..., -1]
    lengths = ", ".join(map(str, measured.lengths))
    identities = [
        f"after {rounds} rounds both sides of the identity differ by {error:.1e} of Δ at most (K = {lengths})"
        for rounds, error in zip(measured.rounds, errors, strict=True)
    ]
    terms = [
        f"after {rounds} rounds the FOMAML terms are {share_interval(each)} of Δ at"
        f" K = {measured.products.shape[-1] - 1}, over {len(each)} repetitions"
        for rounds, each in zip(measured.rounds, shares, strict=True)
    ]
    return Claim(
        "Federated Averaging can be interpreted as a meta-learning algorithm",
        "the same claim; its numbers are not known",
        decision(errors, shares),
        (*identities, *terms),
    )


def decision(errors: np.ndarray, shares: np.ndarray) -> Decision:
    """The rule: every error `[checkpoints]` is below the tolerance, every mean share above one half.

    shares: `[checkpoints, repetitions]`; the t-interval over repetitions must exclude one half at every checkpoint.
    """
    if shares.shape[1] < LEAST_SEEDS or not (np.isfinite(errors).all() and np.isfinite(shares).all()):
        return "inconclusive"
    signs = [1 if error < TOLERANCE else -1 for error in errors]
    intervals = [t_interval(each) for each in shares]
    return decide([*signs, *(int(low > 0.5) - int(high < 0.5) for low, high in intervals)])


IDENTITY = Study("identity", identity)
