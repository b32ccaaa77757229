"Editing: a request, the steps that it takes, the editor, and the account of what ran."
from ..core import pages_on_demand

__getattr__, __dir__ = pages_on_demand(
    __name__, ".request", ".choosing", ".checks", ".unused", ".control", ".embeds", ".given", ".texts",
    ".reference", ".region", ".notes", ".result", ".stores", ".defaults", ".again", ".many", ".stages",
    ".placing", ".together", ".bar", ".change", ".editor", ".weighing")
