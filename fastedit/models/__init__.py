"Models: which there are, where their files lie, how they are checked, loaded and fetched."
from ..core import pages_on_demand

__getattr__, __dir__ = pages_on_demand(
    __name__,
    ".architectures", ".precision", ".configuration", ".hub", ".download", ".lora",
    ".lora_layers", ".lora_merge", ".files", ".folders", ".tokenizer", ".networks", ".ip_adapters",
    ".sources", ".registry", ".mini", ".single_file", ".local", ".user", ".names", ".projections", ".recorded",
    ".places", ".components", ".load", ".doctor", ".fetching", ".random_models", ".pipelines",
)
