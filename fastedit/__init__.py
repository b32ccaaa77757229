"Fast, local, text-guided editing of an existing image with distilled diffusion models."
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
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

class _Moved:
    "Import a module by the name that it had before it became a package: `picturebook` is `world`."
    names = dict(picturebook="world", images="pictures", conditions="pictures.conditions",
                 configuration="models", hub="models", lora="models",
                 training_clip="training.clip", metrics="measure", reader="measure",
                 stats="measure", piebench="measure", report="studies.report",
                 speed="studies.speed", bench="studies.bench", sweep="studies.sweep", demo="studies.demo", schedules="denoise",
                 quick="denoise", attention="denoise", denoiser="denoise", state="denoise.state",
                 threads="denoise.threads",
                 unused="editor.unused", flow="editor.flow", reproduce="editor.again")

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        package, _, module = name.partition(".")
        if package == __name__ and module in cls.names: return ModuleSpec(name, cls)

    @classmethod
    def create_module(cls, spec):
        module = import_module(f"{__name__}.{cls.names[spec.name.partition('.')[2]]}")
        cls.own = module.__spec__
        return module

    @classmethod
    def exec_module(cls, module): module.__spec__ = cls.own

sys.meta_path.append(_Moved)

def __dir__() -> list: return sorted({*globals(), *_lazy, "__version__"})
