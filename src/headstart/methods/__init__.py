"""Methods: client updates, and what some of them change of the server, of client states and of personalization.

Those of arXiv:1909.12488 are in `paper`; what methods with a head of their own share is in `partial`. Every other
module is one method.
"""

from headstart.methods.anil import ANIL
from headstart.methods.apfl import APFL
from headstart.methods.ditto import Ditto
from headstart.methods.fedbabu import FedBABU
from headstart.methods.fedbn import FedBN
from headstart.methods.fedper import FedPer
from headstart.methods.fedprox import FedProx
from headstart.methods.fedrep import FedRep
from headstart.methods.ifca import IFCA
from headstart.methods.knn_per import KNNPer
from headstart.methods.local_only import LocalOnly
from headstart.methods.lpft import LPFT
from headstart.methods.meta_sgd import MetaSGD
from headstart.methods.per_fedavg import PerFedAvg
from headstart.methods.pfedme import PFedMe
from headstart.methods.scaffold import Scaffold

__all__ = [
    "ANIL",
    "APFL",
    "IFCA",
    "LPFT",
    "Ditto",
    "FedBABU",
    "FedBN",
    "FedPer",
    "FedProx",
    "FedRep",
    "KNNPer",
    "LocalOnly",
    "MetaSGD",
    "PFedMe",
    "PerFedAvg",
    "Scaffold",
]
