"Pictures: reading, masks, fitting to a model and back, writing, grids, control maps."
from .sources import *
from .colours import *
from .reading import *
from .grids import *
from .masks import *
from .fitting import *
from .compositing import *
from .tensors import *
from .saving import *
from .photographs import *
from .conditions import *
