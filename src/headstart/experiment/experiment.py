"""Experiments: values that say what to run, and nothing about how or where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import optax

from headstart.fields import MOST_SEED, at_least, check_fields
from headstart.learning.method import PLAIN, ClientUpdate, Method, Weighting
from headstart.learning.optimizers import Optimizer
from headstart.learning.parallel import Parallel
from headstart.learning.personalization import Personalization
from headstart.learning.rounds import Algorithm, centralized, federated
from headstart.learning.tasks import Task
from headstart.models.zoo import Model


@dataclass(frozen=True)
class ModelSpec:
    """A model by name: "cnn", "cnn_lean", "char_lstm", "logistic", "linear" or "mlp"; or `module:name`.

    options: keyword arguments for it. A parameter `classes` that is not given is taken from the data.
    """

    path: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Data:
    """Which federation, and who of it trains.

    source: the name of a federation that headstart knows, or the path of a file.
    options: for the reader or generator of that source.
    train, validation: numbers of clients if at least 1, shares if below; the rest test.
    seed: of the split, apart from the seed of a run, so that all runs share it.
    adapt_examples: how many examples of each client there are to adapt on, and, where the source keeps others for
        testing, to train on: at most this number if at least 1, a share if below; None: all.
    hold_out: whether training clients keep their local test rows out of training where the source has no predefined
        split, too, so that they can be measured.
    """

    source: str = "glyphs"
    options: Mapping[str, Any] = field(default_factory=dict)
    train: float = at_least(0, 0.7, whole_from_one=True)
    validation: float = at_least(0, 0.1, whole_from_one=True)
    seed: int = at_least(0, 0, most=MOST_SEED)
    adapt_examples: float | None = at_least(0, None, above=True, whole_from_one=True)
    hold_out: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


# Of a stage that says no number.
COHORT = 10


@dataclass(frozen=True)
class Stage:
    """Rounds of one client update under one server optimizer.

    clients_per_round: None takes 10, or all training clients where there are fewer.
    weighting: of the replies, by number of examples or uniform; by default as the method's paper weights them.
    stop_at: end the stage early, at the first evaluation at which the initial model's first metric is as good on
        validation clients.
    patience: end the stage early once the initial model's loss on validation clients has not improved for this many
        evaluations.
    """

    name: str
    update: ClientUpdate
    server: Optimizer
    rounds: int = at_least(1)
    clients_per_round: int | None = at_least(1, None)
    # Never None once made: a saved stage says how it weights.
    weighting: Weighting = cast(Weighting, None)
    stop_at: float | None = None
    patience: int | None = at_least(1, None)

    def __post_init__(self) -> None:
        if self.weighting is None:
            object.__setattr__(self, "weighting", getattr(self.update, "weighting", PLAIN.weighting))
        check_fields(self)

    @property
    def method(self) -> Method:
        """Its client update, with what it brings beside it."""
        return self.update

    @property
    def cohort(self) -> int:
        """The number of clients in a round, if there are as many."""
        return COHORT if self.clients_per_round is None else self.clients_per_round

    def algorithm(
        self,
        task: Task,
        model: Model,
        *,
        clients: int | None = None,
        parallel: Parallel = Parallel(),
        server: optax.GradientTransformation | None = None,
    ) -> Algorithm:
        """The training algorithm of the stage.

        clients: how many train in all, by default no more than a cohort. server: in place of its own optimizer.
        """
        return federated(
            task,
            model,
            self.update,
            self.server.build() if server is None else server,
            weighting=self.weighting,
            participation=self.cohort / (clients or self.cohort),
            parallel=parallel,
        )


@dataclass(frozen=True)
class Centralized:
    """A stage as a datacenter would do it: the clients' examples pooled and shuffled.

    steps: how many batches make one round, for curves and checkpoints. stop_at, patience: as of a `Stage`.
    """

    name: str
    optimizer: Optimizer
    rounds: int = at_least(1)
    steps: int = at_least(1, 100)
    batch_size: int = at_least(1, 20)
    stop_at: float | None = None
    patience: int | None = at_least(1, None)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def method(self) -> Method:
        """A pool of examples brings nothing beside a model."""
        return PLAIN

    def algorithm(
        self, task: Task, model: Model, *, clients: int | None = None, parallel: Parallel = Parallel()
    ) -> Algorithm:
        """The training algorithm of the stage, on one device; there are no clients to put side by side."""
        return centralized(task, model, self.optimizer.build(), batch_size=self.batch_size)


Server = Literal["own", "decayed", "adam"]
# Of a trial that says no number of rounds: a tenth of the stage's, and this many at least.
TRIAL_ROUNDS = 10


@dataclass(frozen=True)
class Trial:
    """Short runs of the first stage before training, by which its settings are chosen on validation clients.

    learning_rates: of the clients, of which the best is chosen; by default the stage's own, a tenth and ten times as
        much, and further ones while the best is the last on either side. Later stages change theirs by the same factor.
    servers: tried at that rate: the stage's own optimizer as it is ("own") or with a cosine decay over its rounds
        ("decayed"), and Adam with such a decay ("adam"). A centralized stage has its own optimizer alone.
    rounds: of every short run; by default a tenth of the stage's, and at least 10, but never more than it has.
    personalization: whether the recipe of personalization, too, is made to suit the data.
    """

    learning_rates: tuple[float, ...] = at_least(0, (), above=True)
    servers: tuple[Server, ...] = ("decayed", "adam")
    rounds: int | None = at_least(1, None)
    personalization: bool = True

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Experiment:
    """All that decides a result.

    model, task: None takes what suits the data.
    seed: of initial parameters, cohorts, batches and dropout.
    evaluate_every: rounds between evaluations on validation clients; 0 evaluates only at the end of a stage.
    evaluation_clients: how many validation clients those curves use; all of them choose the length of personalization.
    target: the value of the first metric whose round is reported, as the paper's 0.8.
    start: a safetensors file of parameters to start from, such as another run's `stage-0.safetensors`; `{seed}` in it
        stands for the seed.
    test: whether test clients are measured; not where settings are chosen.
    participants: how many training clients, at most, are measured at the end of the last stage as well, on local test
        rows that training does not use, starting from what they kept. Others, half as many, choose their learning rate
        and epochs. Where test clients are not measured, they are not either.
    trial: how settings that suit the data are chosen before training; None takes them as they are. What is saved as
        experiment.json holds those that were chosen, and no trial.
    """

    name: str
    stages: tuple[Stage | Centralized, ...]
    data: Data = Data()
    model: ModelSpec | None = None
    task: Task | None = None
    personalization: Personalization = Personalization()
    seed: int = at_least(0, 0, most=MOST_SEED)
    evaluate_every: int = at_least(0, 10)
    evaluation_clients: int = at_least(0, 20)
    target: float | None = None
    start: str | None = None
    test: bool = True
    trial: Trial | None = None
    participants: int = at_least(0, 0)

    def __post_init__(self) -> None:
        check_fields(self)
