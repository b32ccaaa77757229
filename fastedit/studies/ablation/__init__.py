"Ablations: one knob turned at a time, on tuning and held-out pictures, as rows that pages read."
from .themes import *
from .ablating import *
from .answers import *
