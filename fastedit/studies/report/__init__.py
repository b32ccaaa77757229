"The report of benchmark runs: sections, numbers, tables, figures, gallery, page."
from .sections import *
from .numbers import *
from .published import *
from .tables import *
from .figures import *
from .gallery import *
from .page import *
