"""The contract of a method: a client update, and optional hooks beside it.

A method is the value that trains a client. One that shares more than a model, has a client state, or personalizes in a
way of its own overrides the hook of that name, and nothing else of headstart need know of it.
"""

from __future__ import annotations

import inspect
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import optax

from headstart.data.federation import Array, Client, Tree
from headstart.errors import UserError
from headstart.fields import check_fields
from headstart.learning.tasks import Sums, Task
from headstart.models.zoo import Model

if TYPE_CHECKING:
    from headstart.learning.personalization import Personalization

Weighting = Literal["examples", "uniform"]
# `(gradient, params) -> gradient`, applied before the client's optimizer.
GradientTransform = Callable[[Tree, Tree], Tree]


@dataclass(frozen=True)
class LinearTransform:
    """A transform of a personalization that is the same in other coordinates of a leaf, in which it may cost less.

    It adds a leaf's gradient and how far the leaf is from the start, each times a factor that depends on neither, as a
    proximal term around the start does, or a mask of whole leaves; see `learning.dual`.
    """

    transform: GradientTransform

    def __call__(self, gradient: Tree, params: Tree) -> Tree:
        """The transformed gradient."""
        return self.transform(gradient, params)


class Reply(NamedTuple):
    """The reply of a client.

    delta: Δ, a tree like what was broadcast.
    weight: the number of the client's examples, a scalar; 0 leaves the reply out.
    metrics: sums over the training steps, `{name: (sum, count)}`.
    client_state: the client's new state, a tree that stays with it until it is drawn again; None without states.
    """

    delta: Tree
    weight: Array
    metrics: Sums
    client_state: Tree = None


class PersonalTraining(NamedTuple):
    """A client's personalization, unit after unit of its recipe: epochs, or whatever else is counted.

    first: the state before, a tree. advance: maps a state and the number of a unit, from 1 on, to the state after it;
        of unit 0 to the same.
    params: the parameters of a state, with which the client predicts. after: the state after n units from the first; by
        default `advance` n times.
    """

    first: Tree
    advance: Callable[[Tree, Array], Tree]
    params: Callable[[Tree], Tree]
    after: Callable[[Array | int], Tree] | None = None


class Method:
    """The optional parts of a method; by default one shared model and no client state.

    title: its name in tables; by default that of the class.
    weighting: how the server weights replies, as the method's paper does, where a stage does not say.
    search_space: values of its own settings that a comparison tries, by field, beside those that all methods have.
    scaled_by_learning_rate: which of these are in units of a power of the client's learning rate β, by field: 1 for a
        rate in units of β, -1 for the strength λ of a proximal term, which moves a step by β λ.
    personal_grid: of a method whose personalization takes no steps at a learning rate, what it counts in place of
        epochs, and how many there are to choose from.
    differs: where `headstart compare` does not have the method as its authors do, for its page; without a full stop.
    """

    title: ClassVar[str] = ""
    weighting: ClassVar[Weighting] = "examples"
    search_space: ClassVar[Mapping[str, Sequence[Any]]] = {}
    scaled_by_learning_rate: ClassVar[Mapping[str, int]] = {}
    personal_grid: ClassVar[tuple[str, int] | None] = None
    differs: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        _check_contract(cls)

    def init_server(self, params: Tree) -> Tree:
        """The tree that the server holds and broadcasts, made of the parameters that a stage starts from."""
        return params

    def server_optimizer(
        self, optimizer: optax.GradientTransformation, participation: float
    ) -> optax.GradientTransformation:
        """The optimizer of the server's tree, made of the stage's own optimizer.

        participation: the share of all training clients that is in a cohort.
        """
        return optimizer

    def init_client_state(self, params: Tree) -> Tree:
        """A client's state before its first round: a tree of arrays, made of the parameters a stage starts from."""
        return None

    def with_client_state(self, broadcast: Tree, client_state: Tree) -> Tree:
        """What a client that took part personalizes from, with the state that it kept; by default what is broadcast.

        It is handed to the hooks of personalization in place of what is broadcast.
        """
        return broadcast

    def personal_init(self, task: Task, model: Model, broadcast: Tree, client: Client, key: Array) -> Tree:
        """The parameters from which a client without a state, as every held-out client, personalizes.

        They are also its initial model. The client holds its support examples, which the method may use.
        """
        return broadcast

    def personal_gradient(self, start: Tree) -> GradientTransform | None:
        """The gradient transform of a personalization that starts from these parameters; None for plain gradients."""
        return None

    def personal_training(
        self, task: Task, model: Model, recipe: Personalization, broadcast: Tree, client: Client, key: Array
    ) -> PersonalTraining | None:
        """The whole of a client's personalization, for what is no local SGD on one gradient; None for that.

        With it, `personal_init` and `personal_gradient` are not called. What unit n comes to must not depend on how
        many units the recipe has.
        """
        return None

    def personal_model(self, task: Task, model: Model) -> Model:
        """The model by which a client predicts with what its personalization has made; by default the trained one.

        Raises:
            UserError: if the method has none for this task or model.
        """
        return model

    @property
    def is_stateful(self) -> bool:
        """Whether clients have a state between rounds."""
        return self._overrides("init_client_state")

    @property
    def is_single_model(self) -> bool:
        """Whether what is broadcast is one model, from which every client starts."""
        return not self._overrides("init_server", "personal_init")

    @property
    def personalizes_from_state(self) -> bool:
        """Whether a client that took part personalizes from more than what is broadcast."""
        return self._overrides("with_client_state")

    @property
    def has_own_training(self) -> bool:
        """Whether its personalization is its own, and may not suit every model or task."""
        return self._overrides("personal_training", "personal_model")

    @property
    def has_own_predictions(self) -> bool:
        """Whether a personalized client predicts by more than the model and parameters of it."""
        return self._overrides("personal_model")

    @property
    def is_plain(self) -> bool:
        """Whether it is a client update alone, without hooks."""
        return (
            self.is_single_model
            and self.for_personalization is PLAIN
            and not self._overrides("server_optimizer", "init_client_state")
        )

    @property
    def for_personalization(self) -> Method:
        """The method, or `PLAIN` where it personalizes in the plain way, so that such methods share programs."""
        return self if self._overrides(*(hook for hook in _HOOKS if hook.startswith("personal_"))) else PLAIN

    def _overrides(self, *hooks: str) -> bool:
        return any(getattr(type(self), hook) is not getattr(Method, hook) for hook in hooks)


_HOOKS = tuple(name for name, part in vars(Method).items() if inspect.isfunction(part) and not name.startswith("_"))
_SETTINGS = ("title", "weighting", "search_space", "scaled_by_learning_rate", "personal_grid", "differs")
_CALL = ("self", "task", "model", "broadcast", "client", "client_state", "key")
PLAIN = Method()


def method_of(update: Any) -> Method:
    """The method that a client update belongs to; of a plain function, the one without hooks.

    Raises:
        UserError: for an object of another class, whose hooks would never be called.
    """
    if isinstance(update, Method):
        return update
    if inspect.isroutine(update) or isinstance(update, partial):
        return PLAIN
    raise UserError(f"{type(update).__name__} is no method; let the class derive from headstart.ClientUpdate")


def _check_contract(kind: type[Method]) -> None:
    """Refuse a class with a hook that would never be called, or that cannot be.

    Raises:
        UserError: for a hook that is misspelt, is no function, or cannot take what it is called with.
    """
    accepted = f"a method may define {', '.join(_HOOKS)}"
    for name in (*vars(kind), *inspect.get_annotations(kind)):
        where, part = f"{kind.__name__}.{name}", vars(kind).get(name)
        if name in (*_HOOKS, "__call__"):
            wanted = list(inspect.signature(getattr(Method, name)).parameters) if name in _HOOKS else _CALL
            if not inspect.isfunction(part) or not _takes(part, len(wanted)):
                raise UserError(f"{where} must be a function of ({', '.join(wanted)})")
        elif inspect.isfunction(part) and not name.startswith("_"):
            raise UserError(
                f"{where} is no part of a method: {accepted}; begin the name of a helper with an underscore"
            )
        elif (
            name not in _SETTINGS and _is_class_setting(kind, name) and (near := get_close_matches(name, _SETTINGS, 1))
        ):
            raise UserError(f"{where} is no part of a method; did you mean {near[0]}?")


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    return True


def _is_class_setting(kind: type, name: str) -> bool:
    annotation = inspect.get_annotations(kind).get(name)
    if isinstance(annotation, str):
        return "ClassVar" in annotation
    return typing.get_origin(annotation) is ClassVar


@dataclass(frozen=True)
class ClientUpdate(Method, ABC):
    """A method: a frozen dataclass that derives from this class, whose call trains a client."""

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """Train on the client's examples, starting from what was broadcast.

        broadcast: the server's parameters, or whatever `init_server` makes of them; Δ has the same structure.
        client_state: the client's own state, or None.
        key: belongs to (seed, round, client).
        """
