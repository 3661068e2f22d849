"""The methods that can be compared, and the candidate settings of each of them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import Any, NamedTuple

import headstart.methods
from headstart.errors import UserError
from headstart.learning.method import ClientUpdate
from headstart.learning.optimizers import Optimizer
from headstart.learning.optimum import PULLS
from headstart.learning.personalization import Personalization
from headstart.methods.paper import FOMAML, MAML, FedAvg, Reptile
from headstart.studies.compare.design import design

Settings = Mapping[str, Any]
LEARNING_RATE, SERVER, SECOND_SERVER = "learning_rate", "server", "second server"
SERVERS = {
    "averaging": Optimizer("sgd", 1.0),
    "momentum, rate 1": Optimizer("sgd", 1.0, {"momentum": 0.9}),
    "momentum, rate 0.3": Optimizer("sgd", 0.3, {"momentum": 0.9}),
    "Adam, rate 0.003": Optimizer("adam", 0.003),
}
SECOND_SERVERS = {f"Adam, rate {learning_rate:g}": Optimizer("adam", learning_rate) for learning_rate in (1e-3, 3e-3)}


class MethodSpec(NamedTuple):
    """A method of a comparison: how it trains, and whether clients personalize the trained model.

    name: in tables. kind: the class of its update. second_kind: that of a second stage. personalizes: whether clients
    train the model they are given; otherwise its initial value is the result, and settings are chosen by it.
    to_optimum: whether they train it to the optimum of a convex loss, in place of a number of epochs.
    """

    name: str
    kind: type[ClientUpdate]
    second_kind: type[ClientUpdate] | None = None
    personalizes: bool = True
    to_optimum: bool = False

    @property
    def personal_grid(self) -> tuple[str, int] | None:
        """As of `Method`: what is chosen of personalization in place of epochs, and among how many."""
        return ("pull", len(PULLS)) if self.to_optimum else self.kind.personal_grid

    def recipe(self, batch_size: int, epochs: int, learning_rates: Sequence[float]) -> Personalization:
        """The personalization of this many epochs at most, at one of these learning rates, where it has some."""
        recipe = Personalization(Optimizer("sgd"), batch_size, epochs, learning_rates=tuple(learning_rates))
        if self.to_optimum:
            return replace(recipe, learning_rates=(), pulls=PULLS)
        return (
            recipe if self.personal_grid is None else replace(recipe, learning_rates=(), epochs=self.personal_grid[1])
        )

    def candidates(self, learning_rates: Sequence[float], count: int) -> list[Settings]:
        """`count` different settings, or all if there are fewer; every method has the same learning rates and servers.

        Settings that are scaled by the learning rate are in units of it here; `resolved` gives their values.
        """
        uses_rate = hasattr(self.kind, LEARNING_RATE)
        shared = {SERVER: tuple(SERVERS), LEARNING_RATE: learning_rates if uses_rate else learning_rates[:1]}
        own = dict(self.kind.search_space) | ({SECOND_SERVER: tuple(SECOND_SERVERS)} if self.second_kind else {})
        return list(design(shared, own, count))

    def resolved(self, settings: Settings) -> Settings:
        """The settings as the update gets them, for people to read."""
        update = self.update(settings, 1)
        actual = {name: getattr(update, name, value) for name, value in settings.items()}
        return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in actual.items()}

    def update(self, settings: Settings, batch_size: int, kind: type[ClientUpdate] | None = None) -> Any:
        """The update with those of the settings that it has."""
        kind = kind or self.kind
        accepted, scaled = {field.name for field in fields(kind)}, kind.scaled_by_learning_rate
        given = {**settings, "batch_size": batch_size} | {
            name: settings[name] * settings[LEARNING_RATE] ** power
            for name, power in scaled.items()
            if name in settings
        }
        return kind(**{name: value for name, value in given.items() if name in accepted})


FEDAVG, BASELINE = "FedAvg (global model)", "FedAvg + fine-tuning"
PAPER_METHODS = (
    MethodSpec(FEDAVG, FedAvg, personalizes=False),
    MethodSpec(BASELINE, FedAvg),
    MethodSpec("FedAvg + optimum", FedAvg, to_optimum=True),
    MethodSpec("Personalized FedAvg", FedAvg, Reptile),
    MethodSpec("Reptile + fine-tuning", Reptile),
    MethodSpec("FOMAML + fine-tuning", FOMAML),
    MethodSpec("MAML + fine-tuning", MAML),
)
_SHORT = {
    "fedavg": FEDAVG,
    "fedavg+ft": BASELINE,
    "optimum": "FedAvg + optimum",
    "personalized_fedavg": "Personalized FedAvg",
    "reptile": "Reptile + fine-tuning",
    "fomaml": "FOMAML + fine-tuning",
    "maml": "MAML + fine-tuning",
}


def built_in_methods() -> dict[str, MethodSpec]:
    """All built-in methods, by the names that commands take."""
    by_name = {method.name: method for method in PAPER_METHODS}
    kinds = {name: getattr(headstart.methods, name) for name in headstart.methods.__all__}
    others = {name.lower(): MethodSpec(kind.title or name, kind) for name, kind in kinds.items()}
    return {short: by_name[name] for short, name in _SHORT.items()} | others


def select_methods(names: Sequence[str]) -> list[MethodSpec]:
    """The methods of these names, `all` or no name for every built-in one; a custom class is `module:Class`.

    FedAvg, with and without fine-tuning, is always among them.

    Raises:
        UserError: for an unknown name, two of the same, or a class that is no method.
    """
    table, chosen = built_in_methods(), list(PAPER_METHODS[:2])
    for name in [name.strip() for name in names] or ["all"]:
        found = list(table.values()) if name == "all" else [_custom(name) if ":" in name else _find(table, name)]
        chosen += [method for method in found if method not in chosen]
    for index, method in enumerate(chosen):
        if method.name in [other.name for other in chosen[:index]]:
            raise UserError(f"two of the methods have the name {method.name!r}; give your own class another")
    return chosen


def _find(table: Mapping[str, MethodSpec], name: str) -> MethodSpec:
    found = {_normalized(short): method for short, method in table.items()}.get(_normalized(name))
    if found is None:
        raise UserError(f"there is no method {name!r}; give some of {', '.join(table)}, or your own as module:Class")
    return found


def _normalized(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _custom(name: str) -> MethodSpec:
    module, _, attribute = name.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's own code raises
        raise UserError(
            f"cannot import the method {name!r} ({type(error).__name__}: {error}); give it as module:Class"
        ) from error
    if not _is_method(kind):
        raise UserError(f"{name} is no method; make it a frozen dataclass that derives from headstart.ClientUpdate")
    missing = [field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]
    if missing:
        raise UserError(f"{name} has no default for {missing[0]!r}; give every setting one")
    for setting, values in kind.search_space.items():
        if setting not in {field.name for field in fields(kind)} or not values:
            raise UserError(f"{name} searches {setting!r} in {values!r}; give values of one of its own settings")
    return MethodSpec(kind.title or attribute, kind)


def _is_method(kind: Any) -> bool:
    method = isinstance(kind, type) and issubclass(kind, ClientUpdate)
    return method and "__dataclass_params__" in vars(kind)
