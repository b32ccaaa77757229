"Views: edits side by side, two over each other, a run's steps, where words looked, time and memory."
from ..core import pages_on_demand

__getattr__, __dir__ = pages_on_demand(
    __name__, ".strips", ".grids", ".comparison", ".trajectories", ".looks", ".timelines")
