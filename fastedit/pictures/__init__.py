"Pictures: reading, masks, fitting to a model and back, writing, grids, control maps."
from ..core import pages_on_demand

__getattr__, __dir__ = pages_on_demand(
    __name__,
    ".sources", ".colours", ".reading", ".grids", ".masks", ".fitting", ".compositing",
    ".cropping", ".tensors", ".saving", ".photographs", ".conditions", ".depths", ".segments",
)
