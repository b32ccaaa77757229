"Show: pictures inside a page, before and after with a line to drag, charts."
from .embedding import *
from .divider import *
from .charts import *
