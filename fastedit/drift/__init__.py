"Drift: what an editor changed that it should not have; how the picture moved, its colours, the edited region, repair."
from .faults import *
from .colours import *
from .registration import *
from .region import *
from .seams import *
from .repair import *
