"""The sizes of studies, by the scale and the kind of the data.

smoke: seconds, to check that everything works. small: hours on two cores, with small models. medium: the paper's
regime, its clients and its rounds with a lean convolutional network, in pieces of hours on two cores. full: the size of
the paper, for a machine with a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from headstart.data.load import load
from headstart.errors import UserError
from headstart.experiment.experiment import Data, ModelSpec
from headstart.experiment.loading import absolute_source
from headstart.learning.tasks import Classification, NextCharacter
from headstart.studies.paper.study import Setting

SCALES = ("smoke", "small", "medium", "full")

_SMOKE = Setting(
    scale="smoke",
    data=Data("glyphs", {"writers": 24, "examples": 30}, train=0.5, validation=0.2),
    model=ModelSpec("mlp", {"widths": [8]}),
    task=Classification(),
    client_rates=(0.05,),
    epochs=(1, 2),
    cohorts=(2, 4),
    rounds=4,
    more_rounds=2,
    seeds=2,
    most_seeds=2,
    spread_seeds=2,
    tuning_seeds=2,
    target=None,
    local_epochs=2,
    steps=3,
    cohort=3,
    personal_epochs=2,
    evaluate_every=2,
    evaluation_clients=5,
    adam_rates=(1e-2,),
    momentum_rates=(1.0,),
)

# Writers of 30 or 60 examples, a third of them to test on: many clients, and tests that tell them apart.
_GLYPHS = {"writers": 900, "humps": (30, 60), "test_fraction": 0.35}

_SMALL = Setting(
    scale="small",
    data=Data("glyphs", _GLYPHS, train=0.33, validation=0.11, seed=1),
    model=ModelSpec("mlp", {"widths": [100]}),
    task=Classification(),
    client_rates=(0.01, 0.02, 0.05, 0.1),
    epochs=(2, 5, 10, 20),
    cohorts=(5, 20),
    rounds=150,
    more_rounds=50,
    seeds=5,
    most_seeds=10,
    spread_seeds=10,
    tuning_seeds=3,
    target=None,
    personal_epochs=10,
)

# Real writers have hundreds of examples; a share of them leaves some with few and some with many.
_SMALL_IMAGES = replace(_SMALL, data=Data(train=0.43, validation=0.1, seed=1, adapt_examples=0.15))

_SMALL_TEXT = replace(
    _SMALL,
    data=Data(train=0.6, validation=0.05, seed=1, adapt_examples=0.25),
    model=ModelSpec("char_lstm", {"width": 64, "layers": 1}),
    task=NextCharacter(),
    client_rates=(0.5, 1.0),
    personal_factors=(1.0, 0.1),
    batch_size=10,
    local_epochs=2,
    steps=10,
    personal_epochs=5,
    evaluations_per_round=2,
    most_seeds=5,
    tuning_seeds=2,
)

_SMOKE_TEXT = replace(
    _SMOKE, data=Data(adapt_examples=3), model=ModelSpec("char_lstm", {"width": 4, "layers": 1}), task=NextCharacter()
)

# The clients of EMNIST-62 in number and in size, the published rates with their neighbours.
_MEDIUM = replace(
    _SMALL,
    scale="medium",
    data=Data("glyphs", {"writers": 3400}, train=2500, validation=100),
    model=ModelSpec("cnn_lean"),
    client_rates=(0.02, 0.01, 0.05),
    rounds=500,
    more_rounds=100,
    most_seeds=5,
    spread_seeds=5,
    tuning_seeds=1,
    target=0.8,
    evaluation_clients=20,
    draws=1,  # of its own in each of five seeds
)

# All of a writer's examples; where accuracy ends below the paper's target, it is counted to nine tenths of its end.
_MEDIUM_IMAGES = replace(_MEDIUM, data=Data(train=0.43, validation=0.1, seed=1), target=None)

_MEDIUM_TEXT = replace(
    _SMALL_TEXT,
    scale="medium",
    data=Data(train=0.6, validation=0.05, seed=1),
    model=ModelSpec("char_lstm", {"width": 128, "layers": 1}),
    rounds=300,
    more_rounds=100,
)

_FULL_TEXT = replace(
    _SMALL_TEXT,
    scale="full",
    data=Data(train=0.8, validation=0.05),
    model=ModelSpec("char_lstm"),
    rounds=300,
    more_rounds=100,
)

_FULL = replace(
    _SMALL,
    scale="full",
    data=Data("emnist", train=2500, validation=100),
    model=ModelSpec("cnn"),
    client_rates=(0.02,),
    rounds=500,
    more_rounds=100,
    local_epochs=10,
    cohort=20,
    target=0.8,
    tuning_seeds=2,
)

_FULL_GLYPHS = replace(_FULL, data=Data("glyphs", {"writers": 3400}, train=2500, validation=100))


def setting_of(scale: str, source: str, options: Mapping[str, Any]) -> Setting:
    """The setting of a scale for a federation.

    source: its name or path. options: of its reader or generator; those of `glyphs` here stay unless given.

    Raises:
        UserError: if the federation holds neither images nor text.
    """
    if source == _SMALL.data.source:
        base = {"smoke": _SMOKE, "small": _SMALL, "medium": _MEDIUM, "full": _FULL_GLYPHS}[scale]
        return replace(base, data=replace(base.data, options={**base.data.options, **options}))
    kind = load(source, **options).metadata.get("kind", "features")
    if kind not in ("image", "text"):
        raise UserError(f"{source} holds {kind}; the paper's claims are tested on images and on text")
    images = {"smoke": _SMOKE, "small": _SMALL_IMAGES, "medium": _MEDIUM_IMAGES, "full": _FULL}
    texts = {"smoke": _SMOKE_TEXT, "small": _SMALL_TEXT, "medium": _MEDIUM_TEXT, "full": _FULL_TEXT}
    base = {"image": images, "text": texts}[kind][scale]
    return replace(base, data=replace(base.data, source=absolute_source(source), options=dict(options)))
