"""Editing methods: what a method is, how it is found by name, and one module a method.

A method's module has the name of its function (`fastedit.methods.ddcm.ddcm`), so it is not
imported here: `find_method("ddcm")` finds it, and your own."""
from ..core import pages_on_demand

__getattr__, __dir__ = pages_on_demand(
    __name__,
    ".regions", ".job", ".method", ".needs", ".presets", ".registry",
)
