"Measuring edits: metrics, the reader of the drawn world, data sets, statistics."
from ..metrics import *
from ..reader import *
from .runs import *
from .entries import *
from .reading import *
from .datasets import *
from .standin import *
from ..stats import *
