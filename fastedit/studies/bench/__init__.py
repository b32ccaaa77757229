"Benchmarks that may be stopped: runs, judging, sources, rows, worker, tables, faults, curves, running."
from .runs import *
from .judging import *
from .sources import *
from .rows import *
from .worker import *
from .tables import *
from .faults import *
from .curves import *
from .running import *
