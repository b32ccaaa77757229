"Failures: what went wrong with an edit, on drawn scenes and photographs."
from .kinds import *
from .evidence import *
from .diagnosis import *
