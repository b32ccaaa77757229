"Memory: what a call costs, what an edit needs, a plan for a card, moving networks, fallbacks."
from .trace import *
from .costs import *
from .residency import *
from .work import *
from .prediction import *
from .estimate import *
from .plan import *
from .mover import *
from .ladder import *
from .settings import *
from .dummy import *
from .residency import vae_precision as _vae_precision  # noqa: F401 (its name before the package)
