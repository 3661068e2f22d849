"""Who is compared, and the settings each of them tries."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

import headstart.methods
from headstart.errors import UserError
from headstart.learning.method import ClientUpdate
from headstart.learning.optimizers import Optimizer
from headstart.methods.paper import FOMAML, MAML, FedAvg, Reptile
from headstart.studies.compare.design import design

Tried = Mapping[str, Any]
RATE, SERVER, SECOND_SERVER = "learning_rate", "server", "second server"
SERVERS = {
    "averaging": Optimizer("sgd", 1.0),
    "momentum, rate 1": Optimizer("sgd", 1.0, {"momentum": 0.9}),
    "momentum, rate 0.3": Optimizer("sgd", 0.3, {"momentum": 0.9}),
    "Adam, rate 0.003": Optimizer("adam", 0.003),
}
SECOND_SERVERS = {f"Adam, rate {rate:g}": Optimizer("adam", rate) for rate in (1e-3, 3e-3)}


class Contender(NamedTuple):
    """A way to train, and to personalize what came of it.

    name: of the table. kind: the update's class. then: that of a second stage. personalizes: whether clients train the
    model they are given; otherwise its initial value is the result, and settings are chosen by it.
    """

    name: str
    kind: type[ClientUpdate]
    then: type[ClientUpdate] | None = None
    personalizes: bool = True

    def tries(self, rates: Sequence[float], count: int) -> list[Tried]:
        """So many different settings, or all if there are not as many; the same rates and servers for every method."""
        shared = {SERVER: tuple(SERVERS), RATE: rates if hasattr(self.kind, RATE) else rates[:1]}
        own = dict(self.kind.search_space) | ({SECOND_SERVER: tuple(SECOND_SERVERS)} if self.then else {})
        return list(design(shared, own, count))

    def told(self, tried: Tried) -> Tried:
        """The settings as the update gets them, for people to read."""
        update = self.update(tried, 1)
        actual = {name: getattr(update, name, value) for name, value in tried.items()}
        return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in actual.items()}

    def update(self, tried: Tried, batch_size: int, kind: type[ClientUpdate] | None = None) -> Any:
        """The update with these settings, as far as it has them."""
        kind = kind or self.kind
        known, relative = {field.name for field in fields(kind)}, kind.scaled_by_learning_rate
        given = {**tried, "batch_size": batch_size} | {
            name: tried[name] * tried[RATE] ** power for name, power in relative.items() if name in tried
        }
        return kind(**{name: value for name, value in given.items() if name in known})


FEDAVG, BASELINE = "FedAvg, not personalized", "FedAvg + fine-tuning"
PAPERS = (
    Contender(FEDAVG, FedAvg, personalizes=False),
    Contender(BASELINE, FedAvg),
    Contender("Personalized FedAvg", FedAvg, Reptile),
    Contender("Reptile + fine-tuning", Reptile),
    Contender("FOMAML + fine-tuning", FOMAML),
    Contender("MAML + fine-tuning", MAML),
)
_SHORT = {
    "fedavg": FEDAVG,
    "fedavg+ft": BASELINE,
    "personalized_fedavg": "Personalized FedAvg",
    "reptile": "Reptile + fine-tuning",
    "fomaml": "FOMAML + fine-tuning",
    "maml": "MAML + fine-tuning",
}


def known() -> dict[str, Contender]:
    """All that come with headstart, by the names that commands take."""
    by_name = {contender.name: contender for contender in PAPERS}
    kinds = {name: getattr(headstart.methods, name) for name in headstart.methods.__all__}
    own = {name.lower(): Contender(kind.title or name, kind) for name, kind in kinds.items()}
    return {short: by_name[name] for short, name in _SHORT.items()} | own


def contenders(names: Sequence[str]) -> list[Contender]:
    """Those of these names, `all` or none for every one; a class of one's own as `module:Class`.

    FedAvg, both ways, is always among them.

    Raises:
        UserError: for an unknown name, two of the same, or a class that is no method.
    """
    table, chosen = known(), list(PAPERS[:2])
    for name in [name.strip() for name in names] or ["all"]:
        asked = list(table.values()) if name == "all" else [_own(name) if ":" in name else _of(table, name)]
        chosen += [contender for contender in asked if contender not in chosen]
    for place, contender in enumerate(chosen):
        if contender.name in [other.name for other in chosen[:place]]:
            raise UserError(f"two of the methods have the name {contender.name!r}; give your own class another")
    return chosen


def _of(table: Mapping[str, Contender], name: str) -> Contender:
    found = {_plain(short): contender for short, contender in table.items()}.get(_plain(name))
    if found is None:
        raise UserError(f"there is no method {name!r}; give some of {', '.join(table)}, or your own as module:Class")
    return found


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _own(name: str) -> Contender:
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
            raise UserError(f"{name} tries {setting!r}: {values!r}; give values of one of its own settings")
    return Contender(kind.title or attribute, kind)


def _is_method(kind: Any) -> bool:
    method = isinstance(kind, type) and issubclass(kind, ClientUpdate)
    return method and "__dataclass_params__" in vars(kind)
