"""Personalization against the number of local examples: a trained model, personalized on nested subsets of them.

Nothing is trained again. The learning rate and the epochs of personalization are chosen for each number of examples, on
validation clients that have as few.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from headstart.data.device_data import Gather, Subset
from headstart.data.federation import Federation, Tree
from headstart.devices import all_devices, release_after_compiling
from headstart.errors import UserError
from headstart.experiment.experiment import Experiment
from headstart.experiment.measured import has_test_examples
from headstart.experiment.setup import Prepared
from headstart.fields import Range, check_argument
from headstart.learning.personalization import Curves, choose_recipe, deciding_metric, pooled
from headstart.learning.rounds import personal_key, seed_key
from headstart.runs.by_examples import (
    ByExamples,
    by_examples_path,
    curve_of,
    extended,
    is_by_examples,
    read_by_examples,
    write_by_examples,
)
from headstart.runs.contents import federation_document, stage_origin
from headstart.runs.directory import decided_before
from headstart.runs.provenance import is_of, provenance
from headstart.runs.pseudonyms import pseudonym, read_key
from headstart.runs.reading import open_run
from headstart.runs.run import Run
from headstart.statistics.by_examples import GainByExamples
from headstart.training.compilation_cache import ProgramCache
from headstart.training.interrupt import Interrupt
from headstart.training.run import run_context, run_prepared
from headstart.training.seed_run import InterruptedRunError, Options, RunContext, selection_clients

NUMBERS = (0, 5, 10, 20, 50, 100, 200)
DRAWS = 3
# The grid of learning rates is widened by this factor, and how often at most, while the best is the last on a side.
FACTOR, MOST_WIDENINGS = 3.0, 4
# Of what is measured: another one makes files of before anew.
VERSION = 1
OnProgress = Callable[[int, int], None]


class _Measured(NamedTuple):
    """What clients are measured with.

    measure: a `Personalizer` of `(clients, gather, learning_rate, epochs)`. test: the clients that are measured.
    ids: of all clients, as they are written.
    """

    context: RunContext
    measure: Callable[..., Curves]
    seed: int
    draws: int
    test: np.ndarray
    ids: Sequence[str]


def measure_by_examples(
    experiment: Experiment,
    out: Path,
    seed: int,
    *,
    numbers: Sequence[int] = NUMBERS,
    draws: int = DRAWS,
    federation: Federation | None = None,
    model: Any = None,
    options: Options = Options(),
    allowed_modules: Collection[str] = (),
    cache: ProgramCache | None = None,
    progress: OnProgress = lambda done, of: None,
) -> bool:
    """Measure a finished seed with at most n local examples, and with all; whether it came to its end.

    What is in the seed's folder already is not measured again, number by number. A draw is one random order of a
    client's examples, of which each number takes the first. Clients with no more than a number have one subset alone,
    for every draw.

    experiment, out: of the run; its last stage is measured. numbers: ascending, by default `NUMBERS`.
    federation, model, options, allowed_modules, cache: as of `run` and `run_into`. progress: called with how many of
        the numbers are done, and of how many.

    Raises:
        UserError: if the seed is not finished, or no test client has local test (query) examples.
    """
    began, stage = time.perf_counter(), len(experiment.stages) - 1
    path, of = by_examples_path(out / f"seed-{seed}", stage), depends_on(out, seed, stage, numbers, draws)
    if is_by_examples(path, of):
        return True
    run = open_run(out, allowed_modules=allowed_modules)
    release_after_compiling()
    cache, mesh = cache or ProgramCache(), all_devices(options.devices)
    cache.make_room()
    unfinished = path.with_name(f"{path.stem}-unfinished.npz")
    prepared = run_prepared(experiment, allowed_modules, cache, federation, model, decided_before(out))
    if not is_of(federation_document(out / "federation.json"), provenance(prepared.federation, {})):
        raise UserError(f"the data of {out} have changed since it was begun; bring back those that it was run on")
    with Interrupt() as interrupt:
        context = run_context(prepared, mesh, options, lambda record: None, interrupt, cache)
        params = run.server_params(prepared.model, seed)
        measure, ids = _measure(context, params, seed), written_ids(out, prepared.federation)
        measured = _Measured(context, measure, seed, draws, _test_clients(prepared), ids)
        try:
            found = _by_examples(measured, _resolved(measured, numbers), unfinished, of, progress)
        except InterruptedRunError:
            return False
    write_by_examples(path, of, found, seconds=time.perf_counter() - began)
    unfinished.unlink()
    return True


def is_measured(out: Path, seed: int, stage: int, *, numbers: Sequence[int] = NUMBERS, draws: int = DRAWS) -> bool:
    """Whether `measure_by_examples` has nothing left to do for a seed."""
    try:
        of = depends_on(out, seed, stage, numbers, draws)
    except UserError:
        return False
    return is_by_examples(by_examples_path(out / f"seed-{seed}", stage), of)


def gain_by_examples(
    run: Run | str | os.PathLike[str],
    *,
    numbers: Sequence[int] = NUMBERS,
    draws: int = DRAWS,
    federation: Federation | None = None,
    options: Options = Options(),
    allowed_modules: Collection[str] = (),
    progress: OnProgress = lambda done, of: None,
) -> GainByExamples:
    """The gain from personalization of a finished run against the number of local examples that a test client has.

    The trained models of its last stage are personalized on nested subsets of each client's local training (support)
    examples, several draws of them, and on all of them. Nothing is trained again; learning rate and epochs are chosen
    for each number on validation clients with as few examples. What was measured is kept in the run's folder, where a
    report finds it.

    run: in hand, or its folder. numbers: the most examples that each client has, ascending; all is added to them.
    draws: how many random orders of each client's examples. federation: where the run was given one in memory.
    options, allowed_modules: as of `run`. progress: called with how many numbers are done, of how many in all seeds.

    Raises:
        UserError: if the run is not finished, its data have changed, or no test client can be measured.
        KeyboardInterrupt: on Ctrl-C.
    """
    run = open_run(run, allowed_modules=allowed_modules)
    _check(run, numbers, draws)
    cache, stage, seeds = ProgramCache(many=True), len(run.ends) - 1, len(run.seeds)
    for index, seed in enumerate(run.seeds):

        def of_seed(done: int, of: int, before: int = index) -> None:
            progress(before * of + done, seeds * of)

        finished = measure_by_examples(
            run.experiment,
            run.path,
            seed,
            numbers=numbers,
            draws=draws,
            federation=federation,
            model=run.given_model,
            options=options,
            allowed_modules=allowed_modules,
            cache=cache,
            progress=of_seed,
        )
        if not finished:
            raise KeyboardInterrupt
    return curve_of(
        [read_by_examples(by_examples_path(run.path / f"seed-{seed}", stage)) for seed in run.seeds],
        run.task.metrics[0],
    )


def _check(run: Run, numbers: Sequence[int], draws: int) -> None:
    if not run.finished:
        raise UserError(f"{run.path} is not finished; repeat its `headstart run` command to resume it")
    check_argument("draws", draws, int, Range(1))
    for number in numbers:
        check_argument("a number of examples", number, int, Range(0))
    if any(more <= fewer for fewer, more in pairwise(numbers)):
        raise UserError(f"the numbers of examples are {list(numbers)}; give each once, from few to many")


def depends_on(out: Path, seed: int, stage: int, numbers: Sequence[int], draws: int) -> dict[str, Any]:
    """What the values of a finished seed depend on.

    Raises:
        UserError: if the stage is not finished, or its files are damaged.
    """
    return stage_origin(out / f"seed-{seed}", stage) | settings(numbers, draws)


def settings(numbers: Sequence[int] = NUMBERS, draws: int = DRAWS) -> dict[str, Any]:
    """What of that is not the run's."""
    return {"numbers": list(numbers), "draws": draws, "version": VERSION}


def _measure(context: RunContext, params: Tree, seed: int) -> Callable[..., Curves]:
    key = personal_key(seed_key(seed))

    def progress(clients: int) -> None:
        if context.interrupt.requested:
            raise InterruptedRunError

    def measure(clients: np.ndarray, gather: Gather, learning_rate: float, epochs: int | None = None) -> Curves:
        return context.personalizers[-1](params, clients, gather, key, progress, learning_rate, epochs)

    return measure


def written_ids(out: Path, federation: Federation) -> Sequence[str]:
    """The ids of a run's clients as it writes them: pseudonyms, where they are hidden."""
    key = read_key(out)
    return federation.ids if key is None else [pseudonym(key, client) for client in federation.ids]


def _test_clients(prepared: Prepared) -> np.ndarray:
    """Those that can be measured."""
    clients = prepared.groups.test[has_test_examples(prepared.federation, prepared.groups.test)]
    if not len(clients):
        raise UserError("no test client has local test (query) examples, so no gain can be measured; give it some")
    return clients


def _resolved(measured: _Measured, numbers: Sequence[int]) -> list[int]:
    """The numbers that some test client has more examples than, and the largest client's own."""
    largest = int(measured.context.prepared.federation.sizes[measured.test, 0].max())
    return [*(number for number in numbers if number < largest), largest]


def _by_examples(
    measured: _Measured, numbers: Sequence[int], unfinished: Path, of: Mapping[str, Any], progress: OnProgress
) -> ByExamples:
    """The values of all numbers, of which those in the file `unfinished` were measured before an interruption."""
    found = read_by_examples(unfinished) if is_by_examples(unfinished, of) else None
    for index in range(0 if found is None else len(found.numbers), len(numbers)):
        one = _of_number(measured, numbers[index], is_all=index == len(numbers) - 1)
        found = one if found is None else extended(found, one)
        write_by_examples(unfinished, of, found, seconds=0)
        progress(index + 1, len(numbers))
    assert found is not None
    return found


def _of_number(measured: _Measured, number: int, *, is_all: bool) -> ByExamples:
    """The values of one number of examples."""
    prepared, test = measured.context.prepared, measured.test
    metric = prepared.task.metrics[0]
    most = None if is_all else number
    learning_rate, epochs, at_edge = _chosen(measured, most)
    values = np.array([each.means(metric) for each in _draws(measured, test, most, learning_rate, epochs)], np.float64)
    return ByExamples(
        np.array([number]),
        tuple(measured.ids[int(client)] for client in test),
        np.asarray(prepared.federation.sizes[test, 0]),
        values[None, :, :, 0],
        values[None, :, :, 1],
        np.array([learning_rate], np.float64),
        np.array([epochs]),
        np.array([at_edge]),
    )


def _draws(
    measured: _Measured, clients: np.ndarray, most: int | None, learning_rate: float, epochs: int | None = None
) -> list[Curves]:
    """The curves of clients on each draw of at most n of their examples; None: on all of them.

    Who has no more is measured once: every draw is all of its examples.
    """
    gather = measured.context.gather

    def measure(some: np.ndarray, number: int) -> Curves:
        subset = None if most is None else Subset(most, measured.seed, number)
        return measured.measure(some, gather.limited(subset), learning_rate, epochs)

    first = measure(clients, 0)
    larger = np.zeros(0, int)
    if most:
        larger = np.flatnonzero(gather.federation.sizes[clients, 0] > most)
    if not len(larger):
        return [first] * measured.draws
    others = [measure(clients[larger], number) for number in range(1, measured.draws)]
    return [first, *(jax.tree.map(partial(_with_rows, larger), first, other) for other in others)]


def _with_rows(index: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """A copy of the first array, with the rows of these indices taken from the second."""
    copy = np.array(old)
    copy[index] = new
    return copy


def _chosen(measured: _Measured, most: int | None) -> tuple[float, int, bool]:
    """The learning rate and the epochs that validation clients with at most n examples choose.

    The candidates are the run's own, and smaller and larger learning rates while the best is the last on that side.
    Returns also whether it still is.
    """
    prepared = measured.context.prepared
    recipe, task = prepared.experiment.personalization, prepared.task
    clients = selection_clients(prepared, prepared.experiment.stages[-1])
    clients = clients[has_test_examples(prepared.federation, clients)]
    # Those that are added come last: among equals the first is chosen, and not one that makes no difference.
    candidates = list(recipe.candidate_rates)
    if most == 0:
        return candidates[0], 0, False
    if not len(clients):
        return candidates[0], recipe.unchosen, False
    best, epochs, curves = candidates[0], recipe.unchosen, dict[float, Curves]()
    for _ in range(MOST_WIDENINGS + 1):
        for learning_rate in candidates:
            if learning_rate not in curves:
                curves[learning_rate] = pooled(_draws(measured, clients, most, learning_rate))
        number, epochs = choose_recipe(
            [curves[each] for each in candidates], task, by=deciding_metric(task, recipe), otherwise=recipe.unchosen
        )
        best, least, greatest = candidates[number], min(candidates), max(candidates)
        if recipe.pulls is not None:
            return best, epochs, epochs == recipe.most
        if prepared.experiment.stages[-1].method.personal_grid is not None:
            return best, epochs, False
        # Without an epoch all learning rates are alike; a smaller one may do less harm, but not one smaller still.
        if not epochs and least < min(recipe.candidate_rates):
            return best, 0, False
        more = [FACTOR * greatest] if epochs and best == greatest else []
        more += [least / FACTOR] if best == least or not epochs else []
        if not more:
            return best, epochs, epochs == recipe.most
        candidates += more
    return best, epochs, True
