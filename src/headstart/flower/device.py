"""A device: a Flower ClientApp that trains and personalizes the clients it holds. Their examples never leave it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from headstart.data.device_data import on_device
from headstart.data.federation import Federation, Tree, limited
from headstart.data.load import load
from headstart.errors import UserError
from headstart.experiment.experiment import Experiment, Stage
from headstart.experiment.loading import read
from headstart.experiment.serialization import to_json
from headstart.experiment.setup import build_model, check_fit, check_stages, suited
from headstart.flower import wire
from headstart.flower.wire import Request
from headstart.learning.method import Reply
from headstart.learning.parallel import Parallel
from headstart.learning.personalization import personalizer
from headstart.learning.rounds import Cohort, Totals, aggregate_clients, no_totals, personal_key, round_key, seed_key
from headstart.learning.tasks import Task, add
from headstart.models.zoo import Model
from headstart.training.compilation_cache import keep_programs

Loader = Callable[[Context], Federation]

# Flower's codes of errors: the app raised an exception. A reason goes to the server, so it holds nothing of the data.
FAILED = 2


class Setting(NamedTuple):
    """What a request is about, at hand."""

    experiment: Experiment
    task: Task
    model: Model
    federation: Federation


@dataclass(frozen=True)
class Device:
    """How the clients of a device answer a server's orders.

    only: the experiment it takes part in; None: any that is made of headstart's own values and these modules.
    data: loads its own clients; None: the file that the node's config names as `data`.
    transform: changes the reply of every client before the device folds them (clip, add noise).
    lanes: how many of its clients train side by side.
    """

    only: Experiment | None = None
    data: Loader | None = None
    transform: Callable[[Reply], Reply] = lambda reply: reply
    lanes: int = 1
    allowed_modules: Collection[str] = ()

    def hold(self, request: Request, content: RecordDict, context: Context) -> RecordDict:
        """Tell which clients are here, how many examples they have and what one looks like."""
        setting = self._setting(request, context)
        check_fit(setting.task, setting.model, setting.federation)
        return wire.manifest_record(setting.federation)

    def train(self, request: Request, content: RecordDict, context: Context) -> RecordDict:
        """Train the clients of a round; their replies, aggregate_clients."""
        setting = self._setting(request, context)
        stage = setting.experiment.stages[request.stage]
        assert isinstance(stage, Stage)
        params, federation = _params(setting.model, content), setting.federation
        given = setting.task, setting.model, stage.update
        aggregate = aggregate_clients(
            *given, weighting=stage.weighting, transform=self.transform, parallel=Parallel(self.lanes)
        )
        fold = jax.jit(aggregate)
        gather, key = on_device(federation), round_key(seed_key(request.seed), request.round)
        totals: Totals = no_totals(params, setting.task)
        clients = _places(federation, request.clients)
        # Always as many at once, so that one program serves every message.
        for beside in np.pad(clients, (0, -len(clients) % self.lanes), constant_values=-1).reshape(-1, self.lanes):
            totals = add(totals, fold(params, Cohort(gather(beside, federation.training_part)), key)[0])
        return wire.totals_record(jax.device_get(totals))

    def evaluate(self, request: Request, content: RecordDict, context: Context) -> RecordDict:
        """Personalize clients, and tell what that did to each; what they have become stays here."""
        setting = self._setting(request, context)
        recipe = setting.experiment.personalization.at_most(request.epochs)
        watch = personalizer(setting.task, setting.model, recipe, parallel=Parallel(self.lanes))
        clients, key = _places(setting.federation, request.clients), personal_key(seed_key(request.seed))
        curves = watch(_params(setting.model, content), clients, on_device(setting.federation), key)
        return wire.curves_record(curves)

    def _setting(self, request: Request, context: Context) -> Setting:
        experiment = read(dict(request.experiment), allowed_modules=self.allowed_modules)
        check_stages(experiment)
        if self.only is not None:
            _check_same(self.only, experiment)
        if not (0 <= request.stage < len(experiment.stages) and isinstance(experiment.stages[request.stage], Stage)):
            raise UserError(f"there is no stage {request.stage} for devices in the experiment")
        federation = self._federation(experiment, context)
        experiment = suited(experiment, federation)
        assert experiment.model is not None and experiment.task is not None
        model = build_model(experiment.model, federation, allowed_modules=self.allowed_modules)
        return Setting(experiment, experiment.task, model, federation)

    def _federation(self, experiment: Experiment, context: Context) -> Federation:
        try:
            federation = (self.data or partial(from_node, options=experiment.data.options))(context)
        except Exception as error:
            # What the user's own code raises may speak of the data.
            _log(error)
            raise UserError("its data cannot be loaded; the node's own log says why") from error
        share = experiment.data.adapt_examples
        return federation if share is None else limited(federation, share)


def client_app(
    experiment: Experiment | None = None,
    data: Loader | None = None,
    *,
    transform: Callable[[Reply], Reply] = lambda reply: reply,
    lanes: int = 1,
    allowed_modules: Collection[str] = (),
    mods: Sequence[Mod] = (),
) -> ClientApp:
    """A ClientApp of the clients a device holds.

    experiment: the one it takes part in; whatever else a server asks is refused. None: any experiment made of
        headstart's own values and of the modules `allowed_modules`.
    data: maps Flower's Context to the device's own clients; None: `from_node`.
    transform: changes the reply of every client before it leaves the device, as in `rounds.federated`.
    lanes: how many of its clients train side by side.
    mods: of Flower, around every message.
    """
    device = Device(experiment, data, transform, lanes, allowed_modules)
    app = ClientApp(mods=list(mods))
    app.query()(partial(_answer, device.hold))
    app.train()(partial(_answer, device.train))
    app.evaluate()(partial(_answer, device.evaluate))
    return app


def from_node(context: Context, options: Any = None) -> Federation:
    """The clients in the file that the node's config names: `flower-supernode --node-config 'data="clients.npz"'`.

    options: for the reader of the file.

    Raises:
        UserError: if the config names none, or it cannot be read.
    """
    if "data" not in context.node_config:
        raise UserError("the node's config names no data; start the node with --node-config 'data=\"FILE\"'")
    return load(str(context.node_config["data"]), **(options or {}))


Work = Callable[[Request, RecordDict, Context], RecordDict]


def _answer(work: Work, message: Message, context: Context) -> Message:
    """The reply to a message; an error says no more than it must."""
    # Each message has a process of its own, so even what compiles quickly is worth keeping.
    keep_programs()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        request = wire.read_request(message.content)
        with jax.enable_x64(request.x64):
            return Message(work(request, message.content, context), reply_to=message)
    except UserError as error:
        _log(error)
        return Message(Error(FAILED, str(error)), reply_to=message)
    except Exception as error:
        _log(error)
        return Message(Error(FAILED, f"{type(error).__name__}; the node's own log says more"), reply_to=message)


def _log(error: Exception) -> None:
    traceback.print_exception(error, file=sys.stderr)


def _check_same(mine: Experiment, given: Experiment) -> None:
    """Refuse what this device has not agreed to. Who takes part in which round is the server's matter."""
    for name in ("stages", "personalization", "task", "model"):
        own = getattr(mine, name)
        if own is not None and to_json(own) != to_json(getattr(given, name)):
            raise UserError(f"the server's experiment has other {name} than the one of this node; install the same one")


def _places(federation: Federation, ids: Sequence[str]) -> np.ndarray:
    """int64 `[n]`: the numbers of these clients."""
    places = {name: number for number, name in enumerate(federation.ids)}
    unknown = [name for name in ids if name not in places]
    if unknown or not ids:
        raise UserError(f"the client {unknown[0]!r} is not here" if unknown else "no client is named")
    return np.array([places[name] for name in ids])


def _params(model: Model, content: RecordDict) -> Tree:
    """The parameters of a message, as the model here has them."""
    like = jax.eval_shape(model.init, seed_key(0))
    record = content.array_records.get(wire.PARAMS)
    if record is None:
        raise UserError("the message brings no parameters")
    return jax.tree.map(jnp.asarray, wire.from_arrays(record, like))
