"The drawn world: scenes as data, their pictures, their words, edits with a right answer, benchmarks."
from .scenes import *
from .drawing import *
from .segments import *
from .words import *
from .edits import *
from .benchmark import *
from .large import *
from .large_words import *
from .chunks import *
