"""A device: a Flower ClientApp that trains and personalizes the clients it holds. Their examples never leave it."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from headstart.console import printable
from headstart.data.decided import as_decided
from headstart.data.device_data import on_device
from headstart.data.federation import Federation, Tree, limited
from headstart.data.load import load_as_decided
from headstart.errors import UserError
from headstart.experiment.experiment import Experiment, Stage
from headstart.experiment.loading import read
from headstart.experiment.serialization import parse, to_json
from headstart.experiment.setup import build_model, check_fit, check_stages
from headstart.experiment.suited import suited
from headstart.flower import wire
from headstart.flower.columns import summary_of
from headstart.flower.exchange import LONGEST_REASON
from headstart.flower.wire import Request
from headstart.learning.method import Reply
from headstart.learning.parallel import Parallel
from headstart.learning.personalization import personalizer
from headstart.learning.rounds import Cohort, Totals, aggregate_clients, no_totals, personal_key, round_key, seed_key
from headstart.learning.tasks import Task, add
from headstart.models.zoo import Model
from headstart.training.compilation_cache import keep_programs

Loader = Callable[[Context], Federation]

# Flower's error code of an app that raised an exception. Its reason goes to the server, so it holds none of the data.
FAILED = 2


class Setup(NamedTuple):
    """The experiment of a request, with its task and model, and this device's clients."""

    experiment: Experiment
    task: Task
    model: Model
    federation: Federation


@dataclass(frozen=True)
class Device:
    """A device, which answers the server's requests to its clients.

    experiment: the one it takes part in; None: any that is made of headstart's own values and the `allowed_modules`.
    data: loads its own clients; None: the file that the node's config names as `data`.
    transform: changes the reply of every client before the device adds them up (clip, add noise).
    lanes: how many of its clients train side by side.
    options: of the reader of that file, beside those that its own experiment and the node's config have. No request has
        a say in them: by the columns that are ids, targets and features, a server could read the file.
    """

    experiment: Experiment | None = None
    data: Loader | None = None
    transform: Callable[[Reply], Reply] = lambda reply: reply
    lanes: int = 1
    allowed_modules: Collection[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def query(self, request: Request, content: RecordDict, context: Context) -> RecordDict:
        """Send the manifest: ids and sizes of the clients, and the schema of their examples.

        Where the request names clients, send sums over the columns of the rows that they train on instead.
        """
        setup = self._setup(request, context)
        if request.clients:
            return wire.report_record(summary_of(setup.federation, _indices(setup.federation, request.clients)))
        check_fit(setup.task, setup.model, setup.federation)
        return wire.manifest_record(setup.federation)

    def train(self, request: Request, content: RecordDict, context: Context) -> RecordDict:
        """Train the clients of a round, and send the totals of their replies."""
        setup = self._setup(request, context)
        stage = setup.experiment.stages[request.stage]
        assert isinstance(stage, Stage)
        params, federation = _params(setup.model, content), setup.federation
        options = {"weighting": stage.weighting, "transform": self.transform, "parallel": Parallel(self.lanes)}
        aggregate = jax.jit(aggregate_clients(setup.task, setup.model, stage.update, **options))
        gather, key = on_device(federation), round_key(seed_key(request.seed), request.round)
        totals: Totals = no_totals(params, setup.task)
        clients = _indices(federation, request.clients)
        # Every call has `lanes` clients, of which -1 stands for none, so that one program serves every message.
        for chunk in np.pad(clients, (0, -len(clients) % self.lanes), constant_values=-1).reshape(-1, self.lanes):
            totals = add(totals, aggregate(params, Cohort(gather(chunk, federation.training_part)), key)[0])
        return wire.totals_record(jax.device_get(totals))

    def evaluate(self, request: Request, content: RecordDict, context: Context) -> RecordDict:
        """Personalize clients, and send the curves of their metrics; the personalized models stay here.

        Of statistics as a task's `more` has them nothing is sent: they would show more of single examples.
        """
        setup = self._setup(request, context)
        recipe = setup.experiment.personalization
        if request.epochs > recipe.most:
            raise UserError(
                f"the request is for {request.epochs} {recipe.unit}, more than its experiment's {recipe.most}"
            )
        recipe = recipe.at_most(request.epochs)
        personalize = personalizer(setup.task, setup.model, recipe, parallel=Parallel(self.lanes))
        clients, key = _indices(setup.federation, request.clients), personal_key(seed_key(request.seed))
        curves = personalize(_params(setup.model, content), clients, on_device(setup.federation), key)
        own = {metric.name: curves.metrics[metric.name] for metric in setup.task.metrics}
        return wire.curves_record(curves._replace(metrics=own))

    def _setup(self, request: Request, context: Context) -> Setup:
        experiment = read(dict(request.experiment), allowed_modules=self.allowed_modules)
        check_stages(experiment)
        if self.experiment is not None:
            _check_same(self.experiment, experiment)
        if not (0 <= request.stage < len(experiment.stages) and isinstance(experiment.stages[request.stage], Stage)):
            raise UserError(f"there is no stage {request.stage} for devices in the experiment")
        federation = self._federation(experiment, request.decided, context)
        experiment = suited(experiment, federation)
        assert experiment.model is not None and experiment.task is not None
        model = build_model(experiment.model, federation, allowed_modules=self.allowed_modules)
        return Setup(experiment, experiment.task, model, federation)

    def _federation(self, experiment: Experiment, decided: Mapping[str, Any], context: Context) -> Federation:
        own = {**(self.experiment.data.options if self.experiment else {}), **self.options}
        try:
            options = {**own, **_options_of(context)}
            federation = (self.data or partial(from_node, options=own, decided=decided))(context)
        except Exception as error:
            # An error of the user's own code may show the data in its text.
            _log(error)
            raise UserError("its data cannot be loaded; the node's own log says why") from error
        if self.data is None:
            _check_options(experiment.data.options, options)
        federation = as_decided(federation, decided, "its data")
        most = experiment.data.adapt_examples
        return federation if most is None else limited(federation, most)


def client_app(
    experiment: Experiment | None = None,
    data: Loader | None = None,
    *,
    transform: Callable[[Reply], Reply] = lambda reply: reply,
    lanes: int = 1,
    allowed_modules: Collection[str] = (),
    options: Mapping[str, Any] | None = None,
    mods: Sequence[Mod] = (),
) -> ClientApp:
    """A ClientApp of the clients a device holds.

    experiment: the one it takes part in; requests of any other are refused. None: any experiment made of headstart's
        own values and those of `allowed_modules`.
    data: maps Flower's Context to the device's own clients; None: `from_node`.
    transform: changes the reply of every client before it leaves the device, as in `rounds.federated`.
    lanes: how many of its clients train side by side.
    options: of the reader that `from_node` calls, such as `client` and `target`; those of the node's config come
        first, then these, then those of `experiment`. A request has no say in them.
    mods: Flower's modifiers, which wrap every message.
    """
    device = Device(experiment, data, transform, lanes, allowed_modules, options or {})
    app = ClientApp(mods=list(mods))
    app.query()(partial(_answer, device.query))
    app.train()(partial(_answer, device.train))
    app.evaluate()(partial(_answer, device.evaluate))
    return app


def from_node(context: Context, options: Any = None, decided: Mapping[str, Any] | None = None) -> Federation:
    """The clients in the file that the node's config names: `flower-supernode --node-config 'data="clients.npz"'`.

    The config may have options of the file's reader, as `data-options="client=ward target=days"`.

    options: others beside them.
    decided: what the run has decided of its data, by which these are read: the order of features, but not which.

    Raises:
        UserError: if the config names no file, or it cannot be read.
    """
    if "data" not in context.node_config:
        raise UserError("the node's config names no data; start the node with --node-config 'data=\"FILE\"'")
    path, own = str(context.node_config["data"]), {**(options or {}), **_options_of(context)}
    return load_as_decided(path, own, decided or {}, select_features=False)


def _options_of(context: Context) -> dict[str, Any]:
    """The options of the reader in a node's config."""
    text = str(context.node_config.get("data-options", ""))
    try:
        pairs = [word.partition("=") for word in shlex.split(text)]
    except ValueError as error:
        raise UserError(f"data-options {text!r} of the node's config cannot be read: {error}") from error
    if not all(equals for _, equals, _ in pairs):
        raise UserError(f'data-options {text!r} of the node\'s config must be written as "key=value key=value"')
    return {key: parse(value) for key, _, value in pairs}


def _check_options(requested: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a request that has the file read in another way than this node does."""
    for name, value in requested.items():
        if name not in own or _as_text(own[name]) != _as_text(value):
            raise UserError(
                f"the server's experiment has the option {name!r} of the data's reader, and this node has not, or"
                f" another; only the node decides it: start the node with --node-config 'data-options=\"{name}=...\"'"
                " or leave it out of the experiment"
            )


def _as_text(option: Any) -> str:
    """An option as a command line would give it."""
    return ",".join(map(_as_text, option)) if isinstance(option, list | tuple) else str(option).lower()


Handler = Callable[[Request, RecordDict, Context], RecordDict]


def _answer(handle: Handler, message: Message, context: Context) -> Message:
    """The reply to a message. An error gives the server as little of its cause as possible."""
    # Each message has a process of its own, so even programs that compile quickly are worth keeping.
    keep_programs()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        request = wire.read_request(message.content)
        with jax.enable_x64(request.x64):
            return Message(handle(request, message.content, context), reply_to=message)
    except UserError as error:
        _log(error)
        return Message(Error(FAILED, printable(str(error), most=LONGEST_REASON)), reply_to=message)
    except Exception as error:
        _log(error)
        return Message(Error(FAILED, f"{type(error).__name__}; the node's own log says more"), reply_to=message)


def _log(error: Exception) -> None:
    text = "".join(traceback.format_exception(error))
    print(printable(text, most=100_000, keep="\n"), file=sys.stderr, flush=True)


def _check_same(mine: Experiment, requested: Experiment) -> None:
    """Refuse an experiment other than this device's. Which clients take part in a round is for the server to decide."""
    for name in ("stages", "personalization", "task", "model"):
        own = getattr(mine, name)
        if own is not None and to_json(own) != to_json(getattr(requested, name)):
            raise UserError(f"the server's experiment has other {name} than the one of this node; install the same one")
    if mine.data.adapt_examples != requested.data.adapt_examples:
        raise UserError("the server's experiment has another data.adapt_examples than the one of this node")


def _indices(federation: Federation, ids: Sequence[str]) -> np.ndarray:
    """int64 `[n]`: the indices of these clients in the federation."""
    indices = {name: index for index, name in enumerate(federation.ids)}
    unknown = [name for name in ids if name not in indices]
    if unknown or not ids:
        raise UserError(f"the client {unknown[0]!r} is not here" if unknown else "no client is named")
    return np.array([indices[name] for name in ids])


def _params(model: Model, content: RecordDict) -> Tree:
    """The parameters of a message, in the structure of the model here."""
    like = jax.eval_shape(model.init, seed_key(0))
    record = content.array_records.get(wire.PARAMS)
    if record is None:
        raise UserError("the message has no parameters")
    return jax.tree.map(jnp.asarray, wire.from_arrays(record, like))
