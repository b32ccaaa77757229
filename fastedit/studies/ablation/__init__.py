"Ablations: one knob turned at a time, on tuning and held-out pictures, as rows that pages read."
from ...core import pages_on_demand

__getattr__, __dir__ = pages_on_demand(__name__, ".themes", ".ablating", ".answers")
