"Fast, local, text-guided editing of an existing image with distilled diffusion models."
from importlib import import_module
from .core import (Cancelled, DataError, FastEditError, ImageError, MaskError, MemoryPlanError, ModelError, NumericalError,
                   OptionError, PromptError)

# Loaded on first use, so that `import fastedit` costs no torch.
_lazy = dict(FastEditor="editor", EditRequest="editor", EditResult="editor", load_model="models", mini_path="models")

__all__ = ["Cancelled", "DataError", "FastEditError", "ImageError", "MaskError", "MemoryPlanError", "ModelError", "NumericalError",
           "OptionError", "PromptError", *_lazy]

def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version
    try: return version("fastedit")
    except PackageNotFoundError: return "0+checkout"  # run from a checkout that was never installed

def __getattr__(name: str):
    if name == "__version__": value = _version()
    elif name in _lazy: value = getattr(import_module(f".{_lazy[name]}", __name__), name)
    else: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value

def __dir__() -> list: return sorted({*globals(), *_lazy, "__version__"})
