"""A run: an experiment into a folder, seed after seed, stage after stage."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from headstart.data.device_data import on_device
from headstart.data.duplicates import data_notes
from headstart.data.federation import Federation, Tree
from headstart.data.load import NAMES
from headstart.devices import all_devices, release_after_compiling
from headstart.errors import UserError
from headstart.experiment.choice import Candidate, described, with_choice
from headstart.experiment.experiment import Experiment, ModelSpec
from headstart.experiment.measured import measurement_notes
from headstart.experiment.personal import most_with_state
from headstart.experiment.serialization import to_json
from headstart.experiment.setup import Prepared, check_parameters, prepare
from headstart.files import file_name
from headstart.learning.client_state import ClientStates, from_tree, tree_shapes
from headstart.learning.method import Method
from headstart.learning.parallel import Parallel
from headstart.learning.personalization import Personalization, Personalizer, personalizer, shared_curves
from headstart.learning.programs import ahead
from headstart.learning.rounds import initial_key, seed_key
from headstart.models.zoo import as_given
from headstart.runs import checkpoint
from headstart.runs.contents import is_whole, seed_folders
from headstart.runs.directory import claimed, decided_before, kept_trial, write_samples, write_trial
from headstart.runs.log import Log, OnEvent, Record
from headstart.runs.provenance import MEMBERS, write_members
from headstart.runs.pseudonyms import hidden, key_of, read_key, write_key
from headstart.runs.reading import open_run
from headstart.runs.run import Run
from headstart.training import cluster
from headstart.training.any_server import MOST_BYTES
from headstart.training.baselines import write_missing_baselines
from headstart.training.checks import check_arguments, check_start, check_together, decided_in_words, own_code, starts
from headstart.training.compilation_cache import ProgramCache
from headstart.training.display import live_display_of
from headstart.training.interrupt import Interrupt
from headstart.training.loop import compile_ahead, is_evaluated, train
from headstart.training.seed_run import (
    InterruptedRunError,
    Options,
    Position,
    RunContext,
    SeedRun,
    evaluate,
    origin,
    report_interrupted,
    start_params,
)
from headstart.training.stage_end import finish_stage
from headstart.training.stage_program import shared_rounds, stage_rounds
from headstart.training.trial import document_of_trial, run_trial


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
    check_arguments(experiment, federation, seeds, options)
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
    check_arguments(experiment, federation, seeds, options)
    release_after_compiling()
    cache, mesh = cache or ProgramCache(), all_devices(options.devices)
    cache.make_room()
    prepared = run_prepared(experiment, allowed_modules, cache, federation, model, _decided_before(out))
    if not options.rewrite:
        prepared = prepared._replace(model=as_given(prepared.model))
    check_together(prepared, seeds, options)
    check_start(prepared, out, seeds)
    written, key = _as_written(out, prepared, options) if cluster.is_first() else (prepared.federation, None)
    prepared, trial = _after_trial(
        prepared, out, partial(run_context, mesh=mesh, options=options, cache=cache), on_event
    )
    writing = (
        claimed(
            out,
            prepared.experiment,
            replace(prepared.federation, metadata=written.metadata),
            allowed_modules=allowed_modules,
            code=own_code(prepared) | starts(prepared.experiment, seeds),
            on_note=lambda text: on_event({"event": "note", "text": text}),
        )
        if cluster.is_first()
        else nullcontext()
    )
    # While the rows are drawn or read, and put on the devices.
    initial = ahead(prepared.model.init, initial_key(seed_key(experiment.seed)))
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
            for text in (*decided_in_words(experiment, prepared.experiment), *notes):
                on_event({"event": "note", "text": text})
        context = run_context(prepared, mesh, options, on_event, interrupt, cache)
        context = context._replace(name=name or "", written=written)
        initial()
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


def run_prepared(
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
    return cache.prepared(key, lambda earlier: given(earlier=earlier))


def run_context(
    prepared: Prepared,
    mesh: Mesh | None,
    options: Options,
    on_event: OnEvent,
    interrupt: Interrupt,
    cache: ProgramCache,
) -> RunContext:
    """What the seeds of a run share, with programs that the cache has, or will have, for runs like it."""
    given, experiment = (prepared.task, prepared.model), prepared.experiment
    parallel = Parallel(options.lanes, mesh)
    clients = len(prepared.groups.train)
    algorithms = tuple(stage.algorithm(*given, clients=clients, parallel=parallel) for stage in experiment.stages)
    same = id(prepared.federation), id(prepared.model), options, mesh

    def cached(what: object, make: Callable[[], Any]) -> Any:
        # With what the key means: an id is only unique among things that are there.
        return cache.get(repr((what, *same)), make, prepared)

    def compiled(recipe: Personalization, method: Method) -> Personalizer:
        # Its learning rates are given with every call.
        unrated = recipe.with_learning_rate(0.0)
        curves = cached(
            ("curves", unrated), lambda: shared_curves(*given, unrated, parallel=parallel, dual=options.rewrite)
        )
        return personalizer(*given, recipe, method=method, parallel=parallel, curves=curves)

    recipe = experiment.personalization
    personalizers = tuple(compiled(recipe, stage.method.for_personalization) for stage in experiment.stages)
    evaluators = tuple(compiled(recipe.at_most(0), stage.method.for_personalization) for stage in experiment.stages)
    of_participants = tuple(
        compiled(recipe, stage.method) if stage.method.personalizes_from_state else plain
        for stage, plain in zip(experiment.stages, personalizers, strict=True)
    )
    gather = cached("gather", lambda: on_device(prepared.federation, limit=options.device_bytes, mesh=mesh))
    shared = cached(("rounds", clients), lambda: shared_rounds(*given, clients=clients, parallel=parallel))
    any_server = cached("any server", lambda: cache.many and _bytes_of(prepared) <= MOST_BYTES)
    programs = tuple(stage_rounds(shared, stage, any_server=any_server) for stage in experiment.stages)
    compiled_all = algorithms, programs, personalizers, evaluators, of_participants
    return RunContext(prepared, gather, *compiled_all, options, on_event, interrupt)


def _bytes_of(prepared: Prepared) -> int:
    """The size of the model's parameters."""
    params = jax.eval_shape(prepared.model.init, jax.random.key(0))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


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
            finish_stage(seed_run, position)
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
        # The processes of a cluster compile in one order.
        compiled = compile_ahead(seed_run, position) if cluster.size() == 1 else None
        evaluate(seed_run, position)
        if compiled is not None:
            compiled()
        return position
    state, states = saved.tree if "kept" in saved.about else (saved.tree, None)
    expected = _clients_with_state(seed_run, saved.about["stage"])
    client_states = None if states is None else from_tree(states, expected=expected)
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
    client_states = None
    if method.is_stateful:
        client_states = ClientStates(method.init_client_state(params), expected=_clients_with_state(seed_run, stage))
    return Position(stage, number, seed_run.context.algorithms[stage].init(params), client_states)


def _clients_with_state(seed_run: SeedRun, number: int) -> int:
    """How many clients may have a state of their own in a stage."""
    prepared = seed_run.context.prepared
    return most_with_state(prepared.experiment.stages[number], len(prepared.groups.train))


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
