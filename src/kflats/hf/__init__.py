"""The transformers plug-in: factorised tables in ordinary checkpoints.

``import kflats`` is enough to make ``quant_method: kflats`` known to transformers. From then on
``from_pretrained`` puts factorised layers into the model skeleton before any weight is read, so a
dense table never exists, and ``save_pretrained`` writes the factors.
"""

from kflats.hf.config import KFlatsConfig
from kflats.hf.describe import describe_, forget_
from kflats.hf.quantizer import KFlatsQuantizer, register
from kflats.hf.skeleton import insert_layers

__all__ = [
    "KFlatsConfig",
    "KFlatsQuantizer",
    "describe_",
    "forget_",
    "insert_layers",
    "register",
]

register()
