"""Baselines beside a run, on its test clients: constants, every client trained alone, a model of pooled examples."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from headstart.data.device_data import part_rows
from headstart.data.federation import Client, Tree
from headstart.data.preprocessing import is_table
from headstart.experiment.measured import has_test_examples
from headstart.experiment.serialization import to_json
from headstart.experiment.suited import is_convex
from headstart.learning.constant import OwnConstant, constant_model, constant_of, has_constants
from headstart.learning.method import PLAIN
from headstart.learning.metrics import evaluated_metrics
from headstart.learning.optimum import PULLS, pulled_optimum
from headstart.learning.parallel import Parallel
from headstart.learning.personalization import (
    Curves,
    Personalization,
    Personalizer,
    choose_recipe,
    deciding_metric,
    personalizer,
    pooled,
)
from headstart.learning.rounds import initial_key, personal_key, seed_key
from headstart.learning.tasks import Classification, Regression
from headstart.runs.baselines import BASELINES, TITLES, Baseline, baselines_depend_on, write_baselines
from headstart.training import cluster
from headstart.training.folds import folds
from headstart.training.seed_run import RunContext

# A model that starts from nothing takes longer than one that starts from a trained one.
LEAST_EPOCHS = 100
# Of the pooled model's weights towards zero, beside the sum of all examples' losses.
RIDGES = (100.0, 10.0, 1.0, 0.1)


def write_missing_baselines(context: RunContext, out: Path) -> None:
    """Measure the baselines of a run and keep them beside its seeds, unless they are there already or not wanted."""
    wanted = context.options.baselines
    if not (is_table(context.prepared.federation.metadata) if wanted is None else wanted):
        return
    if cluster.size() > 1 or not context.prepared.experiment.test:
        return
    prepared = context.prepared
    of = {"run": context.name, "personalization": to_json(prepared.experiment.personalization), "version": 1}
    test = prepared.groups.test
    if baselines_depend_on(out / BASELINES) == of or not has_test_examples(prepared.federation, test).any():
        return
    context.on_event({"event": "note", "text": "measuring baselines: constants, every client alone, examples pooled"})
    found = dict(_measured(context))
    ids = (context.written or prepared.federation).ids
    write_baselines(out / BASELINES, of, [ids[int(i)] for i in test], found)


def _measured(context: RunContext) -> Iterator[tuple[str, Baseline]]:
    yield from _constants(context)
    convex = is_convex(context.prepared.experiment.model) and isinstance(
        context.prepared.task, Classification | Regression
    )
    personalize, recipe = _convex(context) if convex else _other(context)
    if convex:
        yield "centralized", _centralized(context, recipe)
    yield "alone", _alone(context, personalize, recipe, convex=convex)


def _constants(context: RunContext) -> Iterator[tuple[str, Baseline]]:
    prepared = context.prepared
    if not has_constants(prepared.task):
        return
    example = jax.tree.map(jnp.asarray, prepared.federation.example()[0])
    output = jax.eval_shape(
        lambda key, x: prepared.model.apply(prepared.model.init(key), x)[0], jax.random.key(0), example
    )
    model, nothing = constant_model(prepared.task, output.shape[1:]), jnp.zeros(output.shape[1:], jnp.float32)
    constant = jax.jit(partial(constant_of, prepared.task))(_pool(context), nothing)
    for name, method in (("federation constant", PLAIN), ("own constant", OwnConstant())):
        measure = personalizer(
            prepared.task, model, Personalization(epochs=0), method=method, parallel=_parallel(context)
        )
        yield name, _baseline(context, name, "", _curves(context, measure, constant, prepared.groups.test), 0)


def _pool(context: RunContext) -> Client:
    """All that training clients train on, as one client's; its rows are on one device."""
    gather, federation = context.gather, context.prepared.federation
    block = jax.tree.map(lambda leaf: leaf.addressable_data(0), gather.everything())
    rows = part_rows(federation, context.prepared.groups.train, federation.training_part).astype(np.int32)
    # Without a row there is still one to read, of padding.
    return Client(block, jnp.asarray(rows if len(rows) else [0]), jnp.int32(len(rows)), jnp.zeros(2, jnp.uint32))


def _convex(context: RunContext) -> tuple[Personalizer, Personalization]:
    """What trains a convex model, on each client's examples, to its optimum; that of the run, if it does."""
    recipe = context.prepared.experiment.personalization
    if recipe.pulls:
        return context.personalizers[-1], recipe
    recipe = Personalization(pulls=PULLS)
    return personalizer(context.prepared.task, context.prepared.model, recipe, parallel=_parallel(context)), recipe


def _other(context: RunContext) -> tuple[Personalizer, Personalization]:
    recipe = context.prepared.experiment.personalization
    recipe = recipe.at_most(max(recipe.most, LEAST_EPOCHS))
    return personalizer(context.prepared.task, context.prepared.model, recipe, parallel=_parallel(context)), recipe


def _alone(context: RunContext, personalize: Personalizer, recipe: Personalization, *, convex: bool) -> Baseline:
    prepared = context.prepared
    fresh = prepared.model.init(initial_key(seed_key(prepared.experiment.seed)))
    start = jax.tree.map(jnp.zeros_like, fresh) if convex else fresh
    tried = [_chosen_on(context, personalize, start, each, convex=convex) for each in recipe.candidate_rates]
    number, epochs = 0, recipe.unchosen
    if tried[0] is not None:
        by = deciding_metric(prepared.task, recipe)
        number, epochs = choose_recipe([each for each in tried if each], prepared.task, by=by, otherwise=epochs)
    learning_rate = recipe.candidate_rates[number]
    curves = _curves(context, personalize, start, prepared.groups.test, learning_rate)
    if recipe.pulls is not None:
        how = f"a pull of {recipe.pulls[epochs - 1]:g} to zero" if epochs else "zero"
    else:
        how = f"{epochs} {recipe.unit} at a learning rate of {learning_rate:g}"
    return _baseline(context, "alone", how, curves, epochs)


def _chosen_on(
    context: RunContext, personalize: Personalizer, start: Tree, learning_rate: float, *, convex: bool
) -> Curves | None:
    """The curves of validation clients, by which is chosen; None without any that can be measured."""
    clients = context.prepared.groups.validation
    if not has_test_examples(context.prepared.federation, clients).any():
        return None
    gathers = folds(context.gather, clients) if convex else [context.gather]
    return pooled(
        [_curves(context._replace(gather=each), personalize, start, clients, learning_rate) for each in gathers]
    )


def _centralized(context: RunContext, recipe: Personalization) -> Baseline:
    prepared, pool = context.prepared, _pool(context)
    measure = personalizer(prepared.task, prepared.model, Personalization(epochs=0), parallel=_parallel(context))
    start = jax.tree.map(jnp.zeros_like, prepared.model.init(jax.random.key(0)))
    optimum = jax.jit(partial(pulled_optimum, prepared.task, prepared.model))
    models, at = [], start
    for ridge in RIDGES:
        at = optimum(at, start, pool, ridge)
        models.append(at)
    number = 1
    if has_test_examples(prepared.federation, prepared.groups.validation).any():
        tried = [_curves(context, measure, each, prepared.groups.validation) for each in models]
        number, _ = choose_recipe(tried, prepared.task, by=deciding_metric(prepared.task, recipe))
    curves = _curves(context, measure, models[number], prepared.groups.test)
    return _baseline(context, "centralized", f"a ridge of {RIDGES[number]:g}", curves, 0)


def _curves(
    context: RunContext, measure: Personalizer, params: Tree, clients: np.ndarray, learning_rate: float | None = None
) -> Curves:
    key = personal_key(seed_key(context.prepared.experiment.seed))
    more = {} if learning_rate is None else {"learning_rate": learning_rate}
    return measure(params, clients, context.gather, key, **more)


def _parallel(context: RunContext) -> Parallel:
    return Parallel(context.options.lanes, context.gather.mesh)


def _baseline(context: RunContext, name: str, how: str, curves: Curves, column: int) -> Baseline:
    metrics = evaluated_metrics(context.prepared.task)
    return Baseline(TITLES[name], how, {metric.name: curves.means(metric)[:, column] for metric in metrics})
