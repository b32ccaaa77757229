"Benchmarks that may be stopped: runs, judging, sources, rows, worker, tables, curves, running."
from .runs import *
from .judging import *
from .sources import *
from .rows import *
from .worker import *
from .tables import *
from .curves import *
from .running import *
