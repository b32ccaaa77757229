"Speed against stock diffusers, on the same weights, in one run."
from .stock import *
from .timing import *
from .comparison import *
from .options import *
from .busy import *
from .startup import *
from .speed_report import *
from .precisions import *
from .full_size import *
from .in_minutes import *
