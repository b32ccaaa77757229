"The demonstration: edits, comparison, rows, running."
from fastedit.measure import measure_edit, psnr as psnr
from .edits import *
from .comparison import *
from .rows import *
from .running import *

measure = measure_edit  # its name of old
