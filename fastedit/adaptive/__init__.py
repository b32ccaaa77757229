"Settings that choose themselves, experimental: by the kind of edit, by an amount of change, by a second try."
from .auto import *
