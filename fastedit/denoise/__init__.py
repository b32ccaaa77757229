"Denoising: schedules, samplers, attention control, and the one place that calls the networks."
from ..schedules import *
from ..quick import *
from ..denoiser import *
from ..attention import *
