"""Preparation of an experiment: its data, clients, model and task, made and checked against each other."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from headstart.data.characters import fit_characters, is_unfitted
from headstart.data.duplicates import with_duplicate_notes
from headstart.data.federation import Examples, Federation, Split, Tree, input_shapes, limited, shapes, split_clients
from headstart.data.load import load_as_decided
from headstart.data.preprocessing import Preprocessing, is_raw
from headstart.data.readers.pictures import channels_first
from headstart.devices import host_memory
from headstart.errors import UserError
from headstart.experiment.experiment import COHORT, Centralized, Data, Experiment, ModelSpec, Stage
from headstart.experiment.measured import has_test_examples, measurement_problems
from headstart.experiment.personal import check_client_states, check_personalization
from headstart.experiment.serialization import attribute
from headstart.experiment.suited import pull_problems, suited
from headstart.fields import MOST, refusals, refuse
from headstart.learning.method import Method
from headstart.learning.metrics import evaluated_metrics
from headstart.learning.optimizers import Optimizer
from headstart.learning.tasks import Classification, Metric, NextCharacter, Regression, Task, measure_each
from headstart.models.zoo import ALIASES, CNN, Model, as_model


class Prepared(NamedTuple):
    """An experiment with everything it names at hand."""

    experiment: Experiment
    task: Task
    model: Model
    federation: Federation
    groups: Split


def prepare(
    experiment: Experiment,
    *,
    allowed_modules: Collection[str] = (),
    earlier: Prepared | None = None,
    federation: Federation | None = None,
    model: Any = None,
    decided: Mapping[str, Any] = MappingProxyType({}),
) -> Prepared:
    """Load the data, split the clients, build the model; what can be wrong beforehand is found here.

    earlier: another experiment with the same data, model and task, prepared; they are not made again.
    federation, model: in place of those that the experiment names; a model is anything that `as_model` takes.
    decided: what was decided of the data when the run was begun.

    Raises:
        UserError: if a setting is out of range, or data, model, task and stages do not fit each other.
    """
    check_stages(experiment)
    experiment = with_objects(experiment, federation, model)
    data = experiment.data
    federation = earlier.federation if earlier is not None else _federation(data, federation, decided)
    groups = split_clients(federation, train=data.train, validation=data.validation, seed=data.seed)
    federation = preprocessed(federation, groups.train, experiment.task)
    experiment = suited(experiment, federation)
    experiment = with_cohorts(experiment, len(groups.train))
    refuse(
        [
            *_cohort_problems(experiment, groups),
            *batch_problems(experiment, federation, groups),
            *measurement_problems(experiment, federation, groups),
            *target_problems(experiment, federation, groups),
        ]
    )
    assert experiment.model is not None and experiment.task is not None
    if earlier is not None:
        built = earlier.model
    elif in_memory(experiment.model):
        built = given_model(model, federation)
    else:
        built = build_model(experiment.model, federation, allowed_modules=allowed_modules)
    if earlier is None:
        check_fit(experiment.task, built, federation)
    refuse([*pull_problems(experiment)])
    check_parameters(experiment, built)
    check_client_states(experiment, built, len(groups.train))
    check_personalization(experiment, experiment.task, built, federation)
    return Prepared(experiment, experiment.task, built, federation, groups)


def preprocessed(federation: Federation, clients: np.ndarray, task: Task | None = None) -> Federation:
    """The federation of features of a raw table, as decided from what these clients train on; any other as it is.

    So are the characters of text decided that has no vocabulary yet.

    task: None where it is to suit the data; targets are standardized for `Regression` alone.
    """
    if is_unfitted(federation):
        return fit_characters(federation, clients)
    if not is_raw(federation):
        return federation
    targets = task is None or isinstance(task, Regression)
    return Preprocessing.fit(federation, clients, targets=targets).apply(federation)


# What an experiment names in place of a federation or a model that was handed over as an object.
IN_MEMORY = "in memory"


def with_objects(experiment: Experiment, federation: Federation | None, model: Any) -> Experiment:
    """The experiment with what was handed over as an object told by its name.

    model: a name or a `ModelSpec` is taken as the experiment's own.
    """
    if federation is not None:
        data = replace(experiment.data, source=IN_MEMORY, options={"name": federation.name})
        experiment = replace(experiment, data=data)
    if isinstance(model, str | ModelSpec):
        return replace(experiment, model=ModelSpec(model) if isinstance(model, str) else model)
    if model is None:
        return experiment
    kind = model if isinstance(model, type) else type(model)
    return replace(experiment, model=ModelSpec(IN_MEMORY, {"name": kind.__qualname__}))


def in_memory(model: ModelSpec) -> bool:
    """Whether the model was handed over as an object, and must be again."""
    return model.path == IN_MEMORY


def given_model(model: Any, federation: Federation) -> Model:
    """The model that was handed over as an object, anything that `as_model` takes, for the federation's inputs.

    Raises:
        UserError: if it was not handed over again.
    """
    if model is None:
        raise UserError("the experiment's model was given in memory; give it again as model=")
    x, _ = federation.example()
    return as_model(model, input_shapes(x))


def check_parameters(experiment: Experiment, model: Model) -> None:
    """Try the optimizers and the methods on the model's parameters, without computing anything.

    Raises:
        UserError: if an optimizer refuses them or its own options, or they would not fit this machine's memory.
    """
    assert experiment.model is not None
    params = jax.eval_shape(model.init, jax.random.key(0))
    _check_memory(experiment.model, params)
    refuse(refusals(*(partial(optimizer.try_on, params, steps) for optimizer, steps in _optimizers(experiment))))
    for stage in experiment.stages:
        jax.eval_shape(partial(_method_trees, stage.method, model))


def _check_memory(model: ModelSpec, params: Tree) -> None:
    """Refuse a model whose parameters (a tree of shapes) would not fit this machine's memory."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    there = host_memory()
    if size > there:
        raise UserError(
            f"the parameters of model {model.path} have {size / 1e9:,.0f} GB, more than this machine's memory of"
            f" {there / 1e9:,.0f} GB; choose a smaller one"
        )


def _method_trees(method: Method, model: Model) -> Tree:
    """The server's tree and the client state of a method; raises what the method raises for this model."""
    params = model.init(jax.random.key(0))
    method.personal_gradient(params)
    return method.init_server(params), method.init_client_state(params)


def _federation(data: Data, given: Federation | None, decided: Mapping[str, Any]) -> Federation:
    if given is None and data.source == IN_MEMORY:
        raise UserError("the experiment's federation was given in memory; give it again as federation=")
    loaded = given is None
    federation = load_as_decided(data.source, data.options, decided) if loaded else with_duplicate_notes(given)
    if data.hold_out:
        federation = replace(federation, holds_out=True)
    return federation if data.adapt_examples is None else limited(federation, data.adapt_examples)


def check_stages(experiment: Experiment) -> None:
    """Refuse stages that cannot follow each other, and optimizers that cannot be made.

    Raises:
        UserError: for all of them, or if there are no stages.
    """
    if not experiment.stages:
        raise UserError("the experiment has no stages; give it at least one")
    problems = [
        f"stage {after.name!r} would start from stage {before.name!r}, which shares more than one model; let a stage of"
        " such a method be the last"
        for before, after in itertools.pairwise(experiment.stages)
        if not before.method.is_single_model
    ]
    if sum(stage.rounds for stage in experiment.stages) > MOST:
        problems.append(f"the stages have more than {MOST} rounds together; give fewer")
    refuse([*problems, *refusals(*(optimizer.build for optimizer, _ in _optimizers(experiment)))])


def _optimizers(experiment: Experiment) -> list[tuple[Optimizer, int]]:
    """The optimizers, and how many steps each takes: of a client's, which depend on its examples, the first."""
    found = [
        (stage.server, stage.rounds) if isinstance(stage, Stage) else (stage.optimizer, stage.rounds * stage.steps)
        for stage in experiment.stages
    ]
    return [*found, (experiment.personalization.optimizer, 1)]


def with_cohorts(experiment: Experiment, clients: int = COHORT) -> Experiment:
    """The experiment with the cohorts of stages that name none: 10 clients, or all that train where these are fewer."""

    def named(stage: Stage | Centralized) -> Stage | Centralized:
        default = isinstance(stage, Stage) and stage.clients_per_round is None
        return replace(stage, clients_per_round=min(COHORT, clients)) if default else stage

    return replace(experiment, stages=tuple(map(named, experiment.stages)))


# Batches may be larger than any client, as they are for one step on all examples, but not so that they fill the memory.
BATCH, POOL = 2**16, 2**25


def _cohort_problems(experiment: Experiment, groups: Split) -> Iterator[str]:
    """Cohorts of more clients than train."""
    for stage in experiment.stages:
        if isinstance(stage, Stage) and stage.cohort > len(groups.train):
            yield (
                f"stage {stage.name!r} wants a cohort of {stage.cohort} clients, more than the {len(groups.train)}"
                " training clients in the data; choose a smaller cohort"
            )


def batch_problems(experiment: Experiment, federation: Federation, groups: Split) -> Iterator[str]:
    """Batches of more examples than there are."""
    pooled = int(federation.training_sizes[groups.train].sum())
    sizes: list[tuple[str, Any, int]] = [
        ("personalization", experiment.personalization.batch_size, federation.capacity())
    ]
    for stage in experiment.stages:
        name = f"stage {stage.name!r}"
        if isinstance(stage, Centralized):
            sizes.append((name, stage.batch_size, pooled))
            if stage.steps * stage.batch_size > POOL:
                yield f"a round of {name} has {stage.steps * stage.batch_size} examples; give at most {POOL}"
            continue
        sizes.append((name, getattr(stage.update, "batch_size", None), federation.capacity()))
    for name, batch_size, examples in sizes:
        most = max(BATCH, examples)
        if isinstance(batch_size, int) and batch_size > most:
            yield f"{name} has batches of {batch_size} examples, but there are {examples}; give at most {most}"


def target_problems(experiment: Experiment, federation: Federation, groups: Split) -> Iterator[str]:
    """Stages that would end early without validation clients that decide when, or before another."""
    testable = has_test_examples(federation, groups.validation).any()
    monitored = experiment.evaluate_every and experiment.evaluation_clients and testable
    for number, stage in enumerate(experiment.stages):
        if stage.stop_at is None and stage.patience is None:
            continue
        name = "stop_at" if stage.stop_at is not None else "patience"
        if number < len(experiment.stages) - 1:
            yield f"stage {stage.name!r} has `{name}` and is not the last one; only the last may end early"
        elif not monitored:
            yield (
                f"stage {stage.name!r} has `{name}`, but validation clients are never evaluated along training; give"
                " evaluate_every, evaluation_clients and data.validation above 0, and clients local test examples"
            )


def build_model(model: ModelSpec, federation: Federation, *, allowed_modules: Collection[str] = ()) -> Model:
    """The model an experiment names, for the examples of a federation.

    Raises:
        UserError: if it cannot be imported, refuses its options, or is no model.
    """
    thing = _named(model.path, allowed_modules)
    if callable(thing) and not isinstance(thing, Model):
        thing = _called(thing, model, federation)
    x, _ = federation.example()
    if isinstance(thing, CNN) and channels_first(np.shape(x)):
        raise UserError(
            f"the pictures of {federation.name} have the shape {list(np.shape(x)[1:])}, with their channels first; put"
            " them last: np.moveaxis(x, 1, -1)"
        )
    return as_model(thing, input_shapes(x))


def _named(path: str, allowed_modules: Collection[str]) -> Any:
    if path in ALIASES:
        return ALIASES[path]
    if "." not in path and ":" not in path:
        raise UserError(f"there is no model {path!r}; give one of {', '.join(ALIASES)}, or your own as module:name")
    if path.split(".")[0].split(":")[0] != "headstart":
        return attribute(path, allowed_modules, "model")
    own = {kind.__name__: kind for kind in ALIASES.values()}
    name = path.replace(":", ".").rpartition(".")[2]
    if name not in own:
        raise UserError(
            f"{path} is no model of headstart's; give one of {', '.join(ALIASES)}, or your own as module:name"
        )
    return own[name]


def _called(thing: Any, model: ModelSpec, federation: Federation) -> Any:
    """The result of a class or function for the model's options, with the number of classes filled in."""
    is_nnx = isinstance(thing, type) and issubclass(thing, nnx.Module)
    try:
        parameters = inspect.signature(thing.__init__ if is_nnx else thing).parameters
    except (TypeError, ValueError) as error:
        raise UserError(
            f"model {model.path} is nothing that makes a model ({error}); give a class or a function"
        ) from error
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in model.options.items()}
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        raise UserError(f"model {model.path} has no option {unknown[0]!r}; it accepts {', '.join(parameters)}")
    classes, kind = federation.metadata.get("classes"), federation.metadata.get("kind")
    if "classes" in parameters and classes:
        options.setdefault("classes", int(classes))
    elif thing is ALIASES["char_lstm"] and kind == "text" and classes:
        options.setdefault("vocabulary", int(federation.metadata.get("vocabulary", classes)))
    elif thing in (ALIASES["linear"], ALIASES["mlp"]):
        options.setdefault("outputs", _width(federation))
    if "rngs" in parameters:
        return partial(thing, **options)
    try:
        return thing(**options)
    except Exception as error:  # whatever the user's own code raises
        reason = "the data have no classes" if "'classes'" in str(error) else f"{type(error).__name__}: {error}"
        raise UserError(f"cannot make the model {model.path} with the options {options}: {reason}") from error


def _width(federation: Federation) -> int:
    """How many numbers the target of an example has."""
    return math.prod(np.shape(jax.tree.leaves(federation.example()[1])[0])[1:])


def check_fit(task: Task, model: Model, federation: Federation) -> None:
    """Try the task on the model's output for a few examples, without computing anything.

    Raises:
        UserError: if the task cannot take the output or the targets, or the model has too few outputs.
    """
    x, y = jax.tree.map(lambda leaf: leaf[:2], federation.example())
    given = Examples(input_shapes(x), shapes(y), shapes(np.ones(len(jax.tree.leaves(y)[0]), bool)))
    classes, metrics = federation.metadata.get("classes"), evaluated_metrics(task)

    def attempt(examples: Examples) -> Any:
        output, _ = model.apply(model.init(jax.random.key(0)), examples.x)
        measured = measure_each(metrics, output, examples)
        return output, task.loss(output, examples.y), measured

    try:
        output, _, sums = jax.eval_shape(attempt, given)
        for metric in metrics[len(task.metrics) :]:
            _check_finish(metric, sums[metric.name][0].shape)
    except Exception as error:  # whatever a user's own task raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"the task {type(task).__name__} does not fit the model's output or the targets: {reason}"
        ) from error
    _check_outputs(task, output, given.y, classes)


def _check_finish(metric: Metric, shape: tuple[int, ...]) -> None:
    """Refuse a metric whose `finish` makes no number of each client's statistics, of this shape."""
    with np.errstate(all="ignore"):
        found = np.shape(metric.finish(np.zeros((2, 3, *shape))))
    if found != (2, 3):
        raise ValueError(f"finish of {metric.name!r} maps [2, 3, {', '.join(map(str, shape))}] to {list(found)}")


def _check_outputs(task: Task, output: Any, y: Any, classes: int | None) -> None:
    if isinstance(task, Regression) and classes:
        raise UserError("the targets are classes, not quantities; for a table add --data-option regression=true")
    if not isinstance(task, Classification | NextCharacter):
        return
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise UserError(
            f"the targets are {y.dtype}, not classes; choose the task Regression and a model such as linear"
        )
    if output.ndim < 2 or output.shape[-1] < (classes or 2):
        raise UserError(f"the model has {output.shape[-1]} outputs for {classes or 'any'} classes; choose a larger one")
