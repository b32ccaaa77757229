"Editing methods: what a method is, the registry, and one module a method."
from .base import *
