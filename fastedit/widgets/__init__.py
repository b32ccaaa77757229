"Widgets: a notebook editor with a mask brush, a history and exports; sliders over a finished sweep."
from ..core import pages_on_demand

# ipywidgets and anywidget are imported by the pages that show something.
__getattr__, __dir__ = pages_on_demand(
    __name__, ".worker", ".knobs", ".exports", ".regions", ".history", ".restoring", ".brush", ".mask_panel", ".previews",
    ".layout", ".written", ".editor_widget", ".sweep_explorer")
