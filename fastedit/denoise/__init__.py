"Denoising: schedules, samplers, attention control, and the one place that calls the networks."
from ..core import pages_on_demand

# Those without torch first: reading a request needs none.
__getattr__, __dir__ = pages_on_demand(__name__, "..schedules", "..attention", "..quick", "..denoiser")
