"""Who is compared, and the settings each of them tries."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np

import headstart.methods
from headstart.errors import UserError
from headstart.methods import LocalOnly
from headstart.optimizers import Optimizer
from headstart.updates import FOMAML, MAML, FedAvg, Reptile

Tried = Mapping[str, Any]
RATE, SERVER, FACTOR, SECOND_SERVER = "learning_rate", "server", "personal rate factor", "second server"
SERVERS = {
    "momentum, rate 1": Optimizer("sgd", 1.0, {"momentum": 0.9}),
    "momentum, rate 0.3": Optimizer("sgd", 0.3, {"momentum": 0.9}),
    "Adam, rate 0.003": Optimizer("adam", 0.003),
}
SECOND_SERVERS = {f"Adam, rate {rate:g}": Optimizer("adam", rate) for rate in (1e-3, 3e-3)}
FACTORS = 1.0, 0.3


class Contender(NamedTuple):
    """A way to train, and to personalize what came of it.

    name: of the table. kind: the update's class. then: that of a second stage. personalizes: whether clients train the
    model they are given; otherwise its initial value is the result, and settings are chosen by it.
    """

    name: str
    kind: type
    then: type | None = None
    personalizes: bool = True

    def tries(self, rates: Sequence[float], count: int) -> list[Tried]:
        """So many different settings, or all if there are fewer; the same rates and servers for every method.

        The client's rate and the server run through all their combinations; of every further setting the values are
        equally frequent, in an order that depends on the setting's name alone.
        """
        further: dict[str, Sequence[Any]] = {FACTOR: FACTORS} if self.personalizes else {}
        if self.then is not None:
            further[SECOND_SERVER] = tuple(SECOND_SERVERS)
        further |= getattr(self.kind, "tries", {})
        # Local training alone has no rounds to set, only a client's rate.
        servers = tuple(SERVERS)[:1] if self.kind is LocalOnly else tuple(SERVERS)
        first = itertools.cycle(itertools.product(servers, rates))
        columns = {name: _balanced(name, values, count) for name, values in further.items()}
        made = [
            {SERVER: server, RATE: rate, **{name: column[place] for name, column in columns.items()}}
            for place, (server, rate) in enumerate(itertools.islice(first, count))
        ]
        return [tried for place, tried in enumerate(made) if tried not in made[:place]]

    def update(self, tried: Tried, batch_size: int, kind: type | None = None) -> Any:
        """The update with these settings, as far as it has them."""
        kind = kind or self.kind
        known = {field.name for field in fields(kind)}
        return kind(**{name: value for name, value in {**tried, "batch_size": batch_size}.items() if name in known})


def _balanced(name: str, values: Sequence[Any], count: int) -> list[Any]:
    generator = np.random.default_rng(list(name.encode()))
    return [values[i] for i in generator.permutation(np.arange(count) % len(values))]


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
    own = {name.lower(): Contender(name, getattr(headstart.methods, name)) for name in headstart.methods.__all__}
    return {short: by_name[name] for short, name in _SHORT.items()} | own


def contenders(names: Collection[str]) -> list[Contender]:
    """Those of these names, or all; a class of one's own as `module:Class`. FedAvg, both ways, is always among them.

    Raises:
        UserError: for an unknown name, or a class that is no dataclass.
    """
    table = known()
    chosen = [_own(name) if ":" in name else _of(table, name) for name in names] or list(table.values())
    return list(dict.fromkeys([*PAPERS[:2], *chosen]))


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
    except (ImportError, AttributeError) as error:
        raise UserError(f"cannot import the method {name!r} ({error}); give it as module:Class") from error
    if not (isinstance(kind, type) and is_dataclass(kind) and callable(kind)):
        raise UserError(f"{name} is no method; make it a frozen dataclass with the call of a ClientUpdate")
    # A saved experiment names its values by the module they say they are of.
    return Contender(attribute, sys.modules[kind.__module__].__dict__[kind.__qualname__])
