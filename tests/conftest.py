"The same examples on every run, and no time limit for one: machines differ."

from hypothesis import settings

settings.register_profile("fastedit", deadline=None, derandomize=True)
settings.load_profile("fastedit")
