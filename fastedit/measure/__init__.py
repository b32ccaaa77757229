"Measuring edits: metrics, the reader of the drawn world, data sets, statistics."
from ..core import pages_on_demand

__getattr__, __dir__ = pages_on_demand(
    __name__, ".tables", ".resampling", ".intervals", ".differences", ".comparison", ".power",
    ".tradeoff", ".verdict", ".pixels", ".runs", ".folders", ".entries", ".reading", ".datasets",
    ".drawn", ".network", ".reader", ".embeddings", ".backbones", ".perceptual", ".metrics",
    ".profiles", ".scorer", ".standin", ".timing")
