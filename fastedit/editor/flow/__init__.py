"Today's instruction editors: diffusers' own pipelines behind the same request and account."
from ...core import pages_on_demand

__getattr__, __dir__ = pages_on_demand(__name__, ".rules", ".tiny", ".pipeline", ".stored", ".loading",
                                       ".sizes", ".flowedit")
