"""A run in hand: what it was, what came of it, its models."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from headstart.data.decided import decisions
from headstart.data.device_data import on_device
from headstart.data.federation import Federation, Tree, from_arrays
from headstart.errors import UserError
from headstart.experiment.experiment import Experiment
from headstart.experiment.loading import read
from headstart.experiment.setup import build_model, given_model, in_memory
from headstart.fields import Range, check_argument
from headstart.files import write_bytes
from headstart.learning.personalization import adapt_client
from headstart.learning.rounds import client_key, personal_key, seed_key
from headstart.learning.tasks import Metric, Regression, Task
from headstart.models.zoo import Model
from headstart.runs import checkpoint
from headstart.runs.baselines import BASELINES, Baseline, read_baselines
from headstart.runs.clients import Clients, clients_csv_of, clients_of
from headstart.runs.contents import (
    TRIAL,
    Group,
    federation_document,
    read_arrays,
    reading,
    stage_origin,
    stage_report,
    trial_document,
)
from headstart.runs.inputs import inputs_like, targets_like
from headstart.runs.personal import TrainedModel
from headstart.runs.provenance import MEMBERS, read_members
from headstart.runs.results import History, StageResult, before_and_after, estimate
from headstart.statistics.clients import measured_metrics


@dataclass(frozen=True, eq=False)
class Run:
    """A run, finished or not, as its folder holds it.

    label: what to call it, unlike every other run opened with it.
    document, environment: `experiment.json`, with the names that fields have today, and `environment.json`.
    ends: the last round of every stage, as planned. reached: the newest round of every seed that was begun.
    results: of the stages that some seed has finished, by group of clients ("validation", "test").
    history: the first metric on validation clients during training.
    notes: what is missing of the folder, or cannot be read, as sentences.
    allowed_modules: modules beside headstart's own that its values may be imported from.
    """

    path: Path
    label: str
    document: dict[str, Any]
    environment: dict[str, Any]
    task: Task
    ends: tuple[int, ...]
    reached: dict[int, int]
    results: Mapping[Group, tuple[StageResult, ...]]
    history: History
    notes: tuple[str, ...] = ()
    allowed_modules: tuple[str, ...] = ()
    given_model: Any = None

    def __repr__(self) -> str:
        state = "finished" if self.finished else f"at round {max(self.reached.values(), default=0)} of {self.ends[-1]}"
        return f"Run({str(self.path)!r}: {self.label}, {len(self.reached)} seeds, {state})"

    def labelled(self, label: str) -> Run:
        """The run under another label."""
        return replace(self, label=label)

    def with_model(self, model: Any) -> Run:
        """The run with the model that it was given in memory; anything that `as_model` takes."""
        return replace(self, given_model=model)

    @cached_property
    def experiment(self) -> Experiment:
        """What was run."""
        try:
            return read(self.document, allowed_modules=self.allowed_modules)
        except UserError as error:
            raise UserError(f"{self.path}/experiment.json: {error}") from error

    @cached_property
    def trial(self) -> dict[str, Any] | None:
        """What the run's trial tried and chose before training, as in `trial.json`; None without one."""
        path = self.path / TRIAL
        return trial_document(path) if path.exists() else None

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What the task measures, the most important first, and what was measured besides."""
        found = [curves for results in self.results.values() for result in results for curves in result.curves]
        if not found:
            return self.task.metrics
        return tuple(measured_metrics(found[0], self.task))

    @property
    def metric(self) -> Metric:
        """The first metric, by which decisions are made."""
        return self.metrics[0]

    @property
    def unit(self) -> str:
        """What personalization counts: "epochs", "steps" or "pulls"."""
        recipe = self.document["personalization"]
        if recipe.get("pulls") is not None:
            return "pulls"
        return "epochs" if recipe["steps"] is None else "steps"

    @property
    def pulls(self) -> tuple[float, ...]:
        """The pull that each number of "pulls" stands for, that of 0 infinite: the initial model; empty of others."""
        return (math.inf, *self.document["personalization"]["pulls"]) if self.unit == "pulls" else ()

    @property
    def stage_names(self) -> list[str]:
        """The names of the stages, as planned."""
        return [stage["name"] for stage in self.document["stages"]]

    @property
    def stage_results(self) -> tuple[StageResult, ...]:
        """The finished stages on test clients."""
        return self.results["test"]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that were begun."""
        return tuple(self.reached)

    @property
    def finished(self) -> bool:
        """Whether every seed that was begun has come to its end."""
        last = f"stage-{len(self.ends) - 1}.json"
        return bool(self.seeds) and all((self.path / f"seed-{seed}" / last).exists() for seed in self.seeds)

    def report(self, seed: int | None = None, stage: int = -1) -> dict[str, Any]:
        """What a stage left of a seed, its `stage-n.json`; by default of the last stage and the first seed to end it.

        Raises:
            UserError: if it is not finished.
        """
        number, seed = self._ended(seed, stage)
        return stage_report(self.path / f"seed-{seed}" / f"stage-{number}.json")

    def params(self, seed: int | None = None, stage: int = -1) -> Tree:
        """The parameters of the initial model at the end of a stage, a plain tree of arrays.

        Of a method that shares more than one model, all that its server holds.

        Raises:
            UserError: if the stage is not finished, or its file is damaged.
        """
        return checkpoint.read_tree(self.params_path(seed, stage), self._origin(seed, stage))

    def params_path(self, seed: int | None = None, stage: int = -1) -> Path:
        """The file of `params`."""
        number, seed = self._ended(seed, stage)
        return self.path / f"seed-{seed}" / f"stage-{number}.safetensors"

    def _origin(self, seed: int | None, stage: int) -> dict[str, Any]:
        """What `params` must be of."""
        number, seed = self._ended(seed, stage)
        return stage_origin(self.path / f"seed-{seed}", number)

    def server_params(self, model: Model, seed: int, stage: int = -1) -> Tree:
        """The `params` in the tree that the stage's method holds on its server for a model.

        Raises:
            UserError: as of `params`, and if they are of another model.
        """
        method = self.experiment.stages[stage].method
        like = jax.eval_shape(lambda: method.init_server(model.init(seed_key(seed))))
        return checkpoint.read(self.params_path(seed, stage), like, self._origin(seed, stage)).tree

    def chosen_epochs(self, seed: int | None = None, stage: int = -1) -> int:
        """The epochs (or steps) that a stage's validation clients chose; without any, the largest number tried.

        Of pulls, which one (0: none, the initial model as it is); without validation clients, the middle one.
        """
        report = self.report(seed, stage)
        chosen = [report[group]["length"] for group in ("validation", "test") if group in report]
        return int(chosen[0]) if chosen else self.experiment.personalization.unchosen

    def personal_experiment(self, seed: int | None = None, stage: int = -1) -> Experiment:
        """The experiment with the one learning rate of personalization that the stage chose."""
        recipe = self.experiment.personalization
        if not recipe.learning_rates:
            return self.experiment
        chosen = recipe.with_learning_rate(self.report(seed, stage)["personal_rate"])
        return replace(self.experiment, personalization=chosen)

    def clients(self, group: Group = "test", *, stage: int = -1) -> Clients:
        """Every client of a group at the end of a stage, before and after personalization.

        Raises:
            UserError: if no seed has finished the stage, or the group was not measured.
        """
        return clients_of(self._result(group, stage), self.metrics)

    def write_clients(self) -> Path | None:
        """Write `clients.csv` into the run's folder: the clients of its last stage, by group; None if it has not ended.

        Raises:
            UserError: if it cannot be written.
        """
        last = {group: results[-1] for group, results in self.results.items() if results and results[-1].final}
        if not last:
            return None
        write_bytes(self.path / "clients.csv", clients_csv_of(last, self.metrics))
        return self.path / "clients.csv"

    def summary(self, group: Group = "test", *, stage: int = -1) -> dict[str, Any]:
        """What a stage came to on a group of clients: `summary["accuracy"]["difference"]` and the like.

        Every metric has "initial", "personalized" and "difference", each with its uniform "mean" over clients and the
        "interval" of 95 % by a bootstrap over clients. "harmed": the "share" of clients with a worse value, and the
        share "expected" from test noise at most, means over seeds. "diverged", where there are any: how many clients'
        personalization diverged, seed by seed; they are in all the numbers.

        Raises:
            UserError: as of `clients`.
        """
        result = self._result(group, stage)
        values = {metric.name: before_and_after(result, metric) for metric in self.metrics}
        harmed = [report[group]["hurt"] for report in result.reports if report[group]["hurt"]]
        lost = [report[group].get("diverged", 0) for report in result.reports]
        return {
            "clients": len(values[self.metric.name][0]),
            "seeds": list(result.seeds),
            self.unit: [self.pulls[count] for count in result.epochs] if self.pulls else list(result.epochs),
            **{
                name: {
                    "initial": _estimate_document(before),
                    "personalized": _estimate_document(after),
                    "difference": _estimate_document(after - before),
                }
                for name, (before, after) in values.items()
            },
            "harmed": {"share": _mean(harmed, "share"), "expected": _mean(harmed, "by_chance")},
            **({"diverged": lost} if any(lost) else {}),
        }

    @cached_property
    def baselines(self) -> dict[str, Baseline]:
        """What the run is measured beside, by name; empty where it was not.

        "federation constant" and "own constant": the most frequent class, or the mean, of the training clients or of
        the client's own support examples. "alone": every test client trained alone, on its support examples.
        "centralized": one model of the training clients' examples, pooled. The `values` of each are per test client,
        by metric, in the order of `clients()`: `run.baselines["alone"].values["accuracy"]`.

        Raises:
            UserError: if the file of them is damaged.
        """
        return read_baselines(self.path / BASELINES)

    @property
    def labels(self) -> tuple[Any, ...]:
        """The names of the classes, where the data have some."""
        return tuple(self.metadata.get("labels") or ())

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What is known of the examples, as of a `Federation`."""
        return federation_document(self.path / "federation.json")["facts"]

    @cached_property
    def members(self) -> dict[str, list[str]] | None:
        """The ids of the clients that train, validate and test; None of a run from before these were kept.

        Raises:
            UserError: if the file of them is damaged.
        """
        paths = [self.path / MEMBERS, *(self.path / f"seed-{seed}" / MEMBERS for seed in self.seeds)]
        path = next((path for path in paths if path.exists()), None)
        return None if path is None else read_members(path)

    @property
    def decided(self) -> dict[str, Any]:
        """What training decided of its data, by which other data are read for it; see `data.decided.decisions`."""
        return decisions(self.metadata, regression=isinstance(self.task, Regression))

    @cached_property
    def model(self) -> Model:
        """The model, without parameters; built for the few examples that a run keeps.

        On a CPU its convolutions are replaced, as `as_model` says, whatever the run's `Options.rewrite` was: outputs
        differ by rounding.

        Raises:
            UserError: if it was given in memory and is not at hand, or cannot be built.
        """
        examples = self.example_federation
        if self.given_model is not None:
            return given_model(self.given_model, examples)
        spec = self.experiment.model
        assert spec is not None
        if in_memory(spec):
            raise UserError(f"the model of {self.path} was given in memory; give it again: open_run(path, model=...)")
        return build_model(spec, examples, allowed_modules=self.allowed_modules)

    @cached_property
    def example_federation(self) -> Federation:
        """The examples that the run keeps of one of its test clients, as a federation of it alone.

        Raises:
            UserError: if it keeps none, as where x and y are not one array each.
        """
        path = self.path / "samples.npz"
        with reading(path, instead="and a run keeps examples only if x and y are one array each"):
            arrays = read_arrays(path)
            kept = [name[1:] for name in arrays if name.startswith("x")]
            most = max(kept, key=lambda index: len(arrays[f"x{index}"]))
            x, y = arrays[f"x{most}"], arrays[f"y{most}"]
        return from_arrays("samples", ["sample"], np.array([[len(x), 0]]), x, y, metadata=self.metadata)

    def initial_model(self, seed: int | None = None, stage: int = -1) -> TrainedModel:
        """The initial model, ready to predict.

        Raises:
            UserError: as of `params` and `model`.
        """
        number, seed = self._ended(seed, stage)
        method, path = self.experiment.stages[number].method, self.params_path(seed, number)
        if not method.is_single_model:
            raise UserError(
                f"the method of stage {self.stage_names[number]!r} has no one model that all clients start from"
            )
        like = jax.eval_shape(self.model.init, seed_key(seed))
        return self._trained(checkpoint.read(path, like, self._origin(seed, number)).tree)

    def predict(self, x: Tree) -> np.ndarray:
        """Predictions of the initial model for inputs as of `personalize`; see `TrainedModel.predict`."""
        return self.initial_model().predict(x)

    def personalize(
        self, x: Tree, y: Tree, *, client: str = "me", epochs: int | None = None, seed: int | None = None
    ) -> TrainedModel:
        """The model that a client makes its own with examples, at the chosen learning rate and number of epochs.

        x, y: trees of arrays `[rows, ...]`: inputs as the run's federation has them, or a frame with its features;
            targets by the labels that the run's data have, as text or numbers.
        client: its id, of which the order of its batches derives; `headstart personalize` gives the same model.
        epochs: of personalization (or steps); by default as many as the run chose on its validation clients.

        Raises:
            UserError: if the run is not finished, or the examples do not suit its model.
        """
        number, seed = self._ended(seed, -1)
        recipe = self.personal_experiment(seed).personalization
        count = self.chosen_epochs(seed) if epochs is None else recipe.at_most(epochs).most
        x, y = inputs_like(self.decided, self._example())(x), targets_like(self.decided)(y)
        rows = len(jax.tree.leaves(y)[0])
        if not rows:
            raise UserError("there are no examples to personalize with; give one at least")
        mine = from_arrays("mine", [client], np.array([[rows, 0]]), *jax.tree.map(np.asarray, (x, y)))
        method, model = self.experiment.stages[number].method, self.model
        shared = self.server_params(model, seed)
        one = on_device(mine)(np.array([0])).at(0)

        @jax.jit
        def adapt(shared: Tree, key: jax.Array) -> Tree:
            return adapt_client(self.task, model, recipe, shared, one, client_key(key, one), count, method)

        params = jax.device_get(adapt(shared, personal_key(seed_key(seed))))
        return self._trained(params, method.personal_model(self.task, model))

    def _trained(self, params: Tree, model: Model | None = None) -> TrainedModel:
        prepare = inputs_like(self.decided, self._example())
        return TrainedModel(params, model or self.model, self.task, self.labels, prepare)

    def _example(self) -> np.ndarray | None:
        """Some inputs, where the run keeps any that are one array."""
        try:
            x, _ = self.example_federation.example()
        except UserError:
            return None
        return x if isinstance(x, np.ndarray) else None

    @property
    def plot(self) -> Any:
        """Figures of the run: `run.plot.rounds()`, `run.plot.clients()`; see `reports.plots.Plots`."""
        # Figures are made a floor above: only by name, and only where they are asked for.
        return importlib.import_module("headstart.reports.plots").Plots(self)

    def _ended(self, seed: int | None, stage: int) -> tuple[int, int]:
        """The number of the stage, and the seed that has ended it."""
        stages = len(self.ends)
        check_argument("stage", stage, int, Range(-stages, stages - 1))
        number = range(stages)[stage]
        ended = [s for s in self.seeds if (self.path / f"seed-{s}" / f"stage-{number}.json").exists()]
        if not ended or (seed is not None and seed not in ended):
            what = f"{self.path} is not finished" if seed is None else f"seed {seed} of {self.path} is not finished"
            raise UserError(f"{what}; repeat its `headstart run` command to resume it")
        return number, ended[0] if seed is None else seed

    def _result(self, group: Group, stage: int) -> StageResult:
        check_argument("group", group, Group)
        number, _ = self._ended(None, stage)
        found = [result for result in self.results[group] if result.number == number]
        if not found:
            raise UserError(f"{self.path} has no {group} clients that were measured at the end of stage {number}")
        return found[0]


def _estimate_document(values: np.ndarray) -> dict[str, Any]:
    found = estimate(values)
    return {"mean": found.mean, "interval": [found.low, found.high]}


def _mean(documents: list[dict[str, Any]], key: str) -> float | None:
    return float(np.mean([document[key] for document in documents])) if documents else None
