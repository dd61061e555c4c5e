"""kflats: small embedding layers by projective clustering.

The token table of a text model is a third to two thirds of its parameters. kflats finds several
subspaces that the rows of the table lie near, and replaces the table by small factors::

    import kflats

    report = kflats.compress_(model, kflats.CompressionConfig(compression=0.4))
    kflats.save(model, "small-model", report=report)
    model = kflats.load("small-model")

It implements Maalouf, Lang, Rus, Feldman, "Deep Learning Meets Projective Clustering", ICLR 2021.

The names below are imported when they are first used, so that ``import kflats`` and
``kflats --help`` do not wait for torch and scikit-learn.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from kflats import _autoload

if TYPE_CHECKING:
    from kflats.clustering import FitProgress, ProjectiveClustering
    from kflats.compress import compress_
    from kflats.config import CompressionConfig
    from kflats.errors import (
        BudgetError,
        CheckpointError,
        ExportError,
        InputError,
        KflatsError,
        MissingExtraError,
        UnsupportedModelError,
    )
    from kflats.export import ExportReport, export_onnx
    from kflats.factors.budget import Budget
    from kflats.factors.factorization import Factorization
    from kflats.factors.search import choose_n_clusters, choose_n_flats
    from kflats.factors.shape import FactorShape
    from kflats.hub import push_to_hub
    from kflats.layers import FactorizedEmbedding, FactorizedLinear
    from kflats.linalg import relative_error
    from kflats.quantization.training import pack_, unpack_
    from kflats.report import CompressionReport, HealingReport, TableReport
    from kflats.restore import to_dense_
    from kflats.storage import load, save
    from kflats.training import heal_, set_trainable
    from kflats.weighting.calibration import feature_moments
    from kflats.weighting.metric import FeatureMetric
    from kflats.weighting.weights import token_weights

__version__ = version("kflats")
_autoload.install()

__all__ = [
    "Budget",
    "BudgetError",
    "CheckpointError",
    "CompressionConfig",
    "CompressionReport",
    "ExportError",
    "ExportReport",
    "FactorShape",
    "Factorization",
    "FactorizedEmbedding",
    "FactorizedLinear",
    "FeatureMetric",
    "FitProgress",
    "HealingReport",
    "InputError",
    "KflatsError",
    "MissingExtraError",
    "ProjectiveClustering",
    "TableReport",
    "UnsupportedModelError",
    "choose_n_clusters",
    "choose_n_flats",
    "compress_",
    "export_onnx",
    "feature_moments",
    "heal_",
    "load",
    "pack_",
    "push_to_hub",
    "relative_error",
    "save",
    "set_trainable",
    "to_dense_",
    "token_weights",
    "unpack_",
]

_HOMES = {
    "clustering": ("FitProgress", "ProjectiveClustering"),
    "compress": ("compress_",),
    "config": ("CompressionConfig",),
    "errors": (
        "BudgetError",
        "CheckpointError",
        "ExportError",
        "InputError",
        "KflatsError",
        "MissingExtraError",
        "UnsupportedModelError",
    ),
    "export": ("ExportReport", "export_onnx"),
    "factors.budget": ("Budget",),
    "factors.factorization": ("Factorization",),
    "factors.search": ("choose_n_clusters", "choose_n_flats"),
    "factors.shape": ("FactorShape",),
    "hub": ("push_to_hub",),
    "layers": ("FactorizedEmbedding", "FactorizedLinear"),
    "linalg": ("relative_error",),
    "quantization.training": ("pack_", "unpack_"),
    "report": ("CompressionReport", "HealingReport", "TableReport"),
    "restore": ("to_dense_",),
    "storage": ("load", "save"),
    "training": ("heal_", "set_trainable"),
    "weighting.calibration": ("feature_moments",),
    "weighting.metric": ("FeatureMetric",),
    "weighting.weights": ("token_weights",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'kflats' has no attribute {name!r}")
    value = getattr(import_module(f"kflats.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
