"Denoising: schedules, grids, samplers, the store, the one place that asks networks, attention."
from ..core import pages_on_demand

__getattr__, __dir__ = pages_on_demand(
    __name__, ".schedules", ".grids", ".samplers", ".schedulers", ".state", ".sharing", ".store",
    ".tiles", ".wording", ".alignment", ".attention", ".word_maps", ".layers", ".packing",
    ".tricks", ".codec", ".residuals", ".denoiser", ".threads")
