"Measuring edits: metrics with their backbones, the reader of the drawn world, data sets, statistics."
from ..metrics import *
from ..reader import *
from ..piebench import *
from ..stats import *
