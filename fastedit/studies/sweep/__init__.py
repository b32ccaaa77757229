"Sweeps over settings: grid, subjects, rehearsal, plan, running, views, answers, race."
from .grid import *
from .subjects import *
from .rehearsal import *
from .plan import *
from .running import *
from .views import *
from .answers import *
from .race import *
from fastedit.values import Span as Span
