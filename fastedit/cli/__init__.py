"The command line: one `app`, and a page for each family of commands, which importing registers."
from .terminal import *
from .waiting import *
from .options import *
from .checks import *
from .editing import *
from .batching import *
from .miniatures import *
from .sweeping import *
from .installing import *
from .planning import *
from .comparing import *
from .timing import *
from .diagnosing import *
from .ablating import *
