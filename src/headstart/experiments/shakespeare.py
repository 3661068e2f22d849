"""Next-character prediction by role: FedAvg(1) with server momentum on federated Shakespeare.

Command: headstart run shakespeare            (downloads the data)
         headstart run shakespeare --data FILE
"""

from headstart.experiment.experiment import Data, Experiment, ModelSpec, Stage
from headstart.learning.optimizers import Optimizer
from headstart.learning.personalization import Personalization
from headstart.learning.tasks import NextCharacter
from headstart.methods.paper import FedAvg

EXPERIMENT = Experiment(
    name="shakespeare",
    data=Data("shakespeare", train=0.8, validation=0.05),
    model=ModelSpec("char_lstm"),
    task=NextCharacter(),
    stages=(
        Stage(
            "FedAvg",
            FedAvg(epochs=1, learning_rate=1.0, batch_size=10),
            Optimizer("sgd", 1.0, {"momentum": 0.9}),
            rounds=300,
        ),
    ),
    personalization=Personalization(Optimizer("sgd", 0.1), batch_size=10, epochs=5),
    evaluate_every=25,
)
