"Settings that choose themselves: by the kind of edit (experimental), by an amount of change, by a second try."
from .auto import *
