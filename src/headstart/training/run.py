"""A run: an experiment into a folder, seed after seed, stage after stage."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from headstart._version import __version__
from headstart.data.device_data import on_device
from headstart.data.duplicates import data_notes
from headstart.data.federation import Federation, Tree
from headstart.data.fingerprint import combined, fingerprint
from headstart.data.load import NAMES
from headstart.devices import all_devices
from headstart.errors import UserError
from headstart.experiment.choice import Candidate, described, with_choice
from headstart.experiment.code import code_digests, model_digest
from headstart.experiment.experiment import Centralized, Experiment, ModelSpec, Stage
from headstart.experiment.measured import has_test_examples, measurement_notes
from headstart.experiment.serialization import to_json
from headstart.experiment.setup import Prepared, check_parameters, in_memory, prepare
from headstart.fields import MOST_SEED, refuse
from headstart.files import file_name
from headstart.learning.client_state import ClientStates, from_tree, tree_shapes
from headstart.learning.method import Method
from headstart.learning.parallel import Parallel
from headstart.learning.personalization import (
    Curves,
    Personalization,
    Personalizer,
    choose_recipe,
    deciding_metric,
    edges,
    personalizer,
    pooled,
)
from headstart.learning.rounds import initial_key, run_rounds, seed_key
from headstart.runs import checkpoint
from headstart.runs.contents import is_whole, seed_folders
from headstart.runs.directory import (
    claimed,
    curve_arrays,
    decided_before,
    kept_trial,
    write_samples,
    write_stage,
    write_trial,
)
from headstart.runs.log import Log, OnEvent, Record, left_out
from headstart.runs.provenance import MEMBERS, write_members
from headstart.runs.pseudonyms import hidden, key_of, read_key, write_key
from headstart.runs.reading import open_run
from headstart.runs.run import Run
from headstart.statistics.clients import summarize
from headstart.training import cluster
from headstart.training.baselines import write_missing_baselines
from headstart.training.compilation_cache import ProgramCache
from headstart.training.display import live_display_of
from headstart.training.folds import folds
from headstart.training.interrupt import Interrupt
from headstart.training.loop import is_evaluated, train
from headstart.training.seed_run import (
    InterruptedRunError,
    Options,
    Position,
    RunContext,
    SeedRun,
    check_initial_model,
    evaluate,
    initial_params,
    origin,
    personalization_curves,
    report_interrupted,
    selection_clients,
    start_file,
    start_params,
)
from headstart.training.trial import document_of_trial, run_trial

MOST_SEEDS = 10_000


def run(
    experiment: Experiment,
    out: str | os.PathLike[str] | None = None,
    *,
    federation: Federation | None = None,
    model: Any = None,
    seeds: int = 1,
    options: Options = Options(),
    progress: bool = True,
    on_event: OnEvent | None = None,
    allowed_modules: Collection[str] = (),
) -> Run:
    """Run an experiment into a folder, or resume one that was interrupted there; Ctrl-C saves and returns.

    out: the run folder; by default `runs/NAME`.
    federation, model: objects in place of what the experiment names: a `Federation`; and a name, a `ModelSpec`, a Flax
        module or a pair of functions.
    seeds: how many runs, with seeds from `experiment.seed` on.
    progress: show rounds and evaluations while it works, on a terminal or in a notebook; in a pipe as lines.
    on_event: gets every record of the log as it is written, and others on progress.
    allowed_modules: modules a saved experiment may import beside headstart's own.

    Returns:
        The run, whose `finished` is False where Ctrl-C stopped it, with everything saved.

    Raises:
        UserError: for anything the user can mend; what was saved before stays.
    """
    _check_arguments(experiment, federation, seeds, options)
    out = default_folder(experiment) if out is None else Path(out)
    with ExitStack() as stack:
        listeners = [] if on_event is None else [on_event]
        if progress:
            listeners.append(stack.enter_context(live_display_of(experiment, out, seeds)))
        finished = run_into(
            experiment,
            out,
            federation=federation,
            model=model,
            seeds=seeds,
            options=options,
            on_event=to_all(listeners),
            allowed_modules=allowed_modules,
        )
    given = None if isinstance(model, str | ModelSpec) else model
    found = open_run(out, allowed_modules=allowed_modules, model=given)
    if finished and cluster.is_first():
        found.write_clients()
    return found


def default_folder(experiment: Experiment) -> Path:
    """Where a run goes if nothing else is said: `runs/NAME`, under `runs/` whatever the name."""
    return Path("runs") / file_name(experiment.name)


def to_all(listeners: Sequence[OnEvent]) -> OnEvent:
    """Hands every record to all of them, in their order."""

    def on_event(record: Record) -> None:
        for listener in listeners:
            listener(record)

    return on_event


def run_into(
    experiment: Experiment,
    out: Path,
    *,
    federation: Federation | None = None,
    model: Any = None,
    seeds: int = 1,
    options: Options = Options(),
    on_event: OnEvent = lambda record: None,
    allowed_modules: Collection[str] = (),
    cache: ProgramCache | None = None,
) -> bool:
    """As `run`, in silence; whether it came to its end. In a cluster every process calls it.

    cache: what an earlier run of this process has left.
    """
    _check_arguments(experiment, federation, seeds, options)
    cache, mesh = cache or ProgramCache(), all_devices(options.devices)
    cache.make_room()
    prepared = _prepared(experiment, allowed_modules, cache, federation, model, _decided_before(out))
    _check_together(prepared, seeds, options)
    _check_start(prepared, out, seeds)
    written, key = _as_written(out, prepared, options) if cluster.is_first() else (prepared.federation, None)
    prepared, trial = _after_trial(prepared, out, partial(_context, mesh=mesh, options=options, cache=cache), on_event)
    writing = (
        claimed(
            out,
            prepared.experiment,
            replace(prepared.federation, metadata=written.metadata),
            allowed_modules=allowed_modules,
            code=_own_code(prepared) | _starts(prepared.experiment, seeds),
            on_note=lambda text: on_event({"event": "note", "text": text}),
        )
        if cluster.is_first()
        else nullcontext()
    )
    with writing as name, Interrupt() as interrupt:
        for text in measurement_notes(prepared.experiment, prepared.federation, prepared.groups):
            on_event({"event": "note", "text": text})
        if cluster.is_first():
            write_trial(out, trial)
            if key is not None:
                write_key(out, key)
            write_members(out, written.ids, prepared.groups)
            if options.examples or not (out / "samples.npz").exists():
                readable = options.examples or prepared.experiment.data.source in NAMES
                write_samples(out, written, prepared.groups.test, readable=readable)
            notes = (f"data: {note}" for note in data_notes(prepared.federation))
            for text in (*_decided(experiment, prepared.experiment), *notes):
                on_event({"event": "note", "text": text})
        context = _context(prepared, mesh, options, on_event, interrupt, cache)
        context = context._replace(name=name or "", written=written)
        seeds_run = range(experiment.seed, experiment.seed + seeds)
        finished = all(_run_seed(context, out / f"seed-{seed}", seed) for seed in seeds_run)
        if finished:
            write_missing_baselines(context, out)
        return finished


def _after_trial(
    prepared: Prepared, out: Path, context: Callable[..., RunContext], on_event: OnEvent
) -> tuple[Prepared, Record | None]:
    """The experiment with the settings that its trial chooses, or has chosen before; and the document of the trial."""
    experiment, trial = prepared.experiment, prepared.experiment.trial
    if trial is None:
        return prepared, None
    document = cluster.broadcast(kept_trial(out, experiment) if cluster.is_first() else None)
    if document is None:
        of_trial = context(prepared, on_event=on_event, interrupt=Interrupt())
        seed, log = experiment.seed, Log(None, on_event, experiment.seed)
        document = document_of_trial(run_trial(SeedRun(of_trial, seed, out, seed_key(seed), log), trial), experiment)
    else:
        text = f"trial: chosen before: {described(Candidate(**document['chosen']))}"
        on_event({"event": "note", "text": text})
    experiment = with_choice(experiment, document["chosen"]["learning_rate"], document["chosen"]["server"])
    check_parameters(experiment, prepared.model)
    return prepared._replace(experiment=experiment), document


def _as_written(out: Path, prepared: Prepared, options: Options) -> tuple[Federation, bytes | None]:
    """The federation as it is written, and the key of its pseudonyms if it has some.

    Raises:
        UserError: if ids are to be hidden that are in the folder already.
    """
    key = read_key(out)
    if key is None and not options.hide_ids:
        return prepared.federation, None
    if key is None and ((out / MEMBERS).exists() or seed_folders(out)):
        raise UserError(f"{out} was begun without --hide-ids, so it holds the ids; choose another --out")
    key = key or key_of(prepared.federation)
    return hidden(prepared.federation, key), key


def _decided_before(out: Path) -> dict[str, Any]:
    """What the run in the folder has decided of its data, as process 0 of a cluster sees it."""
    return cluster.broadcast(decided_before(out) if cluster.is_first() else {})


def _check_arguments(experiment: Any, federation: Any, seeds: Any, options: Any) -> None:
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


def _check_start(prepared: Prepared, out: Path, seeds: int) -> None:
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


def _decided(given: Experiment, experiment: Experiment) -> list[str]:
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


def _own_code(prepared: Prepared) -> dict[str, Any]:
    """The digests of the user's own code in an experiment."""
    code: dict[str, Any] = {"code": code_digests(prepared.experiment)}
    if prepared.experiment.model is not None and in_memory(prepared.experiment.model):
        code["model"] = model_digest(prepared.model, prepared.federation)
    return code


def _starts(experiment: Experiment, seeds: int) -> dict[str, Any]:
    """The digests of the parameters that seeds start from, by seed where each has its own; of files that are there."""
    if experiment.start is None:
        return {}
    own = range(experiment.seed, experiment.seed + seeds) if "{seed}" in experiment.start else ["all"]
    digests = {}
    for seed in own:
        with suppress(UserError):  # a seed that has begun needs it no more
            digests[str(seed)] = checkpoint.digest_of(start_file(experiment.start, seed))
    return {"start": digests}


def _check_together(prepared: Prepared, seeds: int, options: Options) -> None:
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


def _prepared(
    experiment: Experiment,
    allowed_modules: Collection[str],
    cache: ProgramCache,
    federation: Federation | None,
    model: Any,
    decided: Mapping[str, Any],
) -> Prepared:
    """The experiment prepared; federation and model are those of an earlier run if they are named alike.

    decided: what was decided of the data when the run was begun.
    """
    given = partial(prepare, experiment, allowed_modules=allowed_modules, decided=decided)
    if federation is not None or model is not None:
        return given(federation=federation, model=model)
    key = json.dumps(["prepared", dict(decided), *map(to_json, (experiment.data, experiment.model, experiment.task))])
    return cache.renew(key, lambda earlier: given(earlier=earlier))


def _context(
    prepared: Prepared,
    mesh: Mesh | None,
    options: Options,
    on_event: OnEvent,
    interrupt: Interrupt,
    cache: ProgramCache,
) -> RunContext:
    given, experiment = (prepared.task, prepared.model), prepared.experiment
    parallel = Parallel(options.lanes, mesh)
    clients = len(prepared.groups.train)
    algorithms = tuple(stage.algorithm(*given, clients=clients, parallel=parallel) for stage in experiment.stages)
    same = id(prepared.federation), id(prepared.model), options, mesh

    def cached(what: object, make: Callable[[], Any]) -> Any:
        # With what the key means: an id is only unique among things that are there.
        return cache.get(repr((what, *same)), lambda: (prepared, make()))[1]

    def compiled(recipe: Personalization, method: Method) -> Personalizer:
        def make() -> Personalizer:
            return personalizer(*given, recipe, method=method, parallel=parallel)

        return cached((recipe, method), make)

    recipe = experiment.personalization
    personalizers = tuple(compiled(recipe, stage.method.for_personalization) for stage in experiment.stages)
    evaluators = tuple(compiled(recipe.at_most(0), stage.method.for_personalization) for stage in experiment.stages)
    gather = cached("gather", lambda: on_device(prepared.federation, limit=options.device_bytes, mesh=mesh))
    programs = tuple(
        cached((number, stage, clients), lambda algorithm=algorithm: run_rounds(algorithm))
        for number, (stage, algorithm) in enumerate(zip(experiment.stages, algorithms, strict=True))
    )
    return RunContext(prepared, gather, algorithms, programs, personalizers, evaluators, options, on_event, interrupt)


def _run_seed(context: RunContext, folder: Path, seed: int) -> bool:
    stages = context.prepared.experiment.stages
    if cluster.broadcast(all(is_whole(folder, number) for number in range(len(stages)))):
        return True
    log = Log(folder / "metrics.jsonl" if cluster.is_first() else None, context.on_event, seed)
    seed_run = SeedRun(context, seed, folder, seed_key(seed), log)
    position = _start(seed_run)
    for number in range(position.stage):
        if cluster.is_first() and not is_whole(folder, number):
            text = f"stage {number} in {folder} is damaged; only a new run, into another --out, would make it again"
            context.on_event({"event": "note", "seed": seed, "text": text})
    for number in range(position.stage, len(stages)):
        if number > position.stage:
            position = _begin(seed_run, number, position.round, position.state.params)
        end = train(seed_run, position)
        if end is None:
            return False
        position = end
        try:
            _finish_stage(seed_run, position)
        except InterruptedRunError:
            report_interrupted(seed_run, position)
            return False
    return True


def _start(seed_run: SeedRun) -> Position:
    """The newest saved position, or the beginning."""
    on_event = seed_run.context.on_event
    params = seed_run.context.prepared.model.init(initial_key(seed_run.key))
    saved = _saved(seed_run, params)
    if saved is None:
        seed_run.log.cut(None)
        position = _begin(seed_run, 0, 0, start_params(seed_run))
        evaluate(seed_run, position)
        return position
    state, states = saved.tree if "kept" in saved.about else (saved.tree, None)
    client_states = None if states is None else from_tree(states)
    position = Position(saved.about["stage"], saved.about["round"], state, client_states)
    for record in seed_run.log.cut(position.round, is_evaluated(seed_run.context.prepared.experiment)):
        on_event({**record, "past": True})
    on_event(
        {"event": "note", "seed": seed_run.seed, "text": f"seed {seed_run.seed} resumes after round {position.round}"}
    )
    return position


def _begin(seed_run: SeedRun, stage: int, number: int, params: Tree) -> Position:
    """The start of a stage after round `number`, from the parameters of a model."""
    method = seed_run.context.prepared.experiment.stages[stage].method
    client_states = ClientStates(method.init_client_state(params)) if method.is_stateful else None
    return Position(stage, number, seed_run.context.algorithms[stage].init(params), client_states)


def _saved(seed_run: SeedRun, params: Tree) -> checkpoint.Saved | None:
    """The newest saved state, which process 0 of a cluster reads for all."""
    stages, algorithms = seed_run.context.prepared.experiment.stages, seed_run.context.algorithms

    def like(about: Mapping[str, Any]) -> Tree:
        number = about["stage"]
        state = jax.eval_shape(algorithms[number].init, params)
        if not stages[number].method.is_stateful:
            return state
        return state, tree_shapes(jax.eval_shape(stages[number].method.init_client_state, params), about["kept"])

    saved, complaints = None, []
    if cluster.is_first():
        saved, complaints = checkpoint.read_newest(seed_run.folder / "checkpoints", like, origin(seed_run))
    for complaint in complaints:
        seed_run.context.on_event({"event": "note", "seed": seed_run.seed, "text": complaint})
    about = cluster.broadcast(None if saved is None else saved.about)
    if about is None:
        return None
    tree = None if saved is None else saved.tree
    return checkpoint.Saved(cluster.shared(tree, like(about)), about)


def _folded(seed_run: SeedRun, position: Position, clients: np.ndarray, tried: list[Curves]) -> list[Curves]:
    """The curves by which a pull is chosen: of few clients, and of each on few rows, the choice would be one of chance.

    The optimum costs little, and so does its measure on other rows; of epochs the curves are those that were tried.
    """
    context = seed_run.context
    if context.prepared.experiment.personalization.pulls is None:
        return tried
    turned = [context._replace(gather=each) for each in folds(context.gather, clients)[1:]]
    more = [
        personalization_curves(seed_run._replace(context=each), position, "validation", clients, interruptible=True)
        for each in turned
    ]
    return [pooled([*tried, *more])]


def _finish_stage(seed_run: SeedRun, position: Position) -> None:
    """Choose learning rate and epochs on the validation clients, then measure the test clients, once."""
    prepared, stage = seed_run.context.prepared, seed_run.context.prepared.experiment.stages[position.stage]
    recipe = prepared.experiment.personalization
    learning_rates, epochs = recipe.candidate_rates, recipe.unchosen
    chosen, arrays = 0, {}
    report: dict[str, Any] = {"stage": stage.name, "round": position.round, "seed": seed_run.seed}
    for group, clients in (("validation", selection_clients(prepared, stage)), ("test", prepared.groups.test)):
        if not len(clients) or (group == "test" and not prepared.experiment.test):
            continue
        candidates = learning_rates if group == "validation" else learning_rates[chosen : chosen + 1]
        tried = [
            personalization_curves(seed_run, position, group, clients, learning_rate=learning_rate, interruptible=True)
            for learning_rate in candidates
        ]
        if group == "validation":
            folds = _folded(seed_run, position, clients, tried)
            metric = deciding_metric(prepared.task, recipe)
            chosen, epochs = choose_recipe(folds, prepared.task, by=metric, otherwise=recipe.unchosen)
        curves = tried[chosen if group == "validation" else 0]
        check_initial_model(seed_run, position, group, clients, curves)
        arrays |= curve_arrays(group, (seed_run.context.written or prepared.federation).select(clients), curves)
        report[group] = summarize(curves, prepared.task, epochs=epochs)
    report["personal_rate"] = learning_rates[chosen]
    measured = has_test_examples(prepared.federation, prepared.groups.validation).any()
    report["edges"] = edges(recipe, learning_rates[chosen], epochs) if measured else []
    before = sum(earlier.rounds for earlier in prepared.experiment.stages[: position.stage])
    report |= left_out(seed_run.log.records(), range(before + 1, position.round + 1))
    seed_run.context.on_event({"event": "stage", **report})
    if not cluster.is_first():
        return
    write_stage(seed_run.folder, position.stage, position.state.params, report, arrays, origin(seed_run))
