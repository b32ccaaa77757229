"Pictures: reading, masks, fitting to a model and back, writing, grids, control maps."
from ..images import *
from ..conditions import *
