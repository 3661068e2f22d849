"""The model, the task and the settings that suit data, where an experiment names none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from headstart.data.characters import special_tokens
from headstart.data.federation import Federation
from headstart.data.preprocessing import is_table, of_metadata
from headstart.experiment.experiment import Centralized, Experiment, ModelSpec, Stage
from headstart.learning.method import PLAIN
from headstart.learning.metrics import metrics_of_table
from headstart.learning.optimum import PULLS
from headstart.learning.personalization import Personalization
from headstart.learning.tasks import Classification, NextCharacter, Regression


def is_convex(model: ModelSpec | None) -> bool:
    """Whether the loss of a model is convex in its parameters, as of headstart's logistic and linear."""
    return model is not None and model.path in ("logistic", "linear", *_CONVEX)


_CONVEX = tuple(
    f"{module}.{kind}" for module in ("headstart", "headstart.models.zoo") for kind in ("Logistic", "Linear")
)


def pull_problems(experiment: Experiment) -> Iterator[str]:
    """Pulls of personalization for what has no one optimum, or for methods that personalize in their own way."""
    if experiment.personalization.pulls is None:
        return
    if not is_convex(experiment.model) or not isinstance(experiment.task, Classification | Regression):
        assert experiment.model is not None
        yield (
            f"personalization.pulls are for headstart's models logistic and linear, whose loss has one optimum, and the"
            f" model is {experiment.model.path}; leave them out"
        )
    for stage in experiment.stages:
        if stage.method.for_personalization is not PLAIN:
            yield (
                f"the method of stage {stage.name!r} personalizes in its own way, not to an optimum; leave"
                " personalization.pulls out"
            )


# Of an MLP on a table that names none: small, for clients with tens of rows.
TABLE_WIDTHS = (64, 64)


# Of personalization on a table, and the norm of a client's gradient there, where nothing is said of them.
TABLE_EPOCHS, TABLE_CLIP = 20, 2.0


def suited(experiment: Experiment, federation: Federation) -> Experiment:
    """The experiment with the model and the task that suit the data where none is given."""
    kind = federation.metadata.get("kind", "features")
    regression = not federation.metadata.get("classes")
    more = metrics_of_table(federation) if is_table(federation.metadata) else ()
    task = {"text": NextCharacter()}.get(kind, Regression(more=more) if regression else Classification(more=more))
    image = "cnn_lean" if federation.name == "glyphs" else "cnn"
    name = {"text": "char_lstm", "image": image}.get(kind, "linear" if regression else "logistic")
    task, model = experiment.task or task, experiment.model or ModelSpec(name)
    if task == NextCharacter() and (special := special_tokens(federation.metadata)):
        task = NextCharacter(special["pad"], tuple(sorted(special.values())))
    if model.path == "mlp" and is_table(federation.metadata):
        model = replace(model, options={"widths": TABLE_WIDTHS, **model.options})
    preprocessing = of_metadata(federation.metadata)
    if isinstance(task, Regression) and preprocessing is not None:
        task = replace(task, center=preprocessing.target_center, scale=preprocessing.target_scale)
    experiment = replace(experiment, task=task, model=model)
    return suited_to_table(experiment) if is_table(federation.metadata) else experiment


def suited_to_table(experiment: Experiment) -> Experiment:
    """The experiment with the personalization, and the clipping, that suit a table where nothing is said of them.

    Convex models are personalized to their optimum, others in more epochs at one of three learning rates. Where there
    is a trial, clients' gradients are clipped, for a row far outside moves a client as far.
    """
    recipe, trial = experiment.personalization, experiment.trial
    if trial is not None:
        experiment = replace(experiment, stages=tuple(map(_clipped, experiment.stages)))
    if recipe != Personalization() or (trial is not None and not trial.personalization):
        return experiment
    plain = all(stage.method.for_personalization is PLAIN for stage in experiment.stages)
    if plain and is_convex(experiment.model):
        return replace(experiment, personalization=replace(recipe, pulls=PULLS))
    own = recipe.optimizer.learning_rate
    # The first one is used along training.
    learning_rates = (own, own / 10, own * 10)
    return replace(experiment, personalization=replace(recipe, epochs=TABLE_EPOCHS, learning_rates=learning_rates))


def _clipped(stage: Stage | Centralized) -> Stage | Centralized:
    if isinstance(stage, Centralized) or getattr(stage.update, "clip", 0.0) is not None:
        return stage
    return replace(stage, update=replace(stage.update, clip=TABLE_CLIP))  # pyright: ignore[reportCallIssue]
