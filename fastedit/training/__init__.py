"How the mini models are trained: networks, tokenizer, the loop, a page a stage, the model card."
from .architectures import *
from .tokenizer import *
from .parts import *
from .loop import *
from .data import *
from .judging import *
from .vae import *
from .reader import *
from .teacher import *
from .distillation import *
from .student import *
from .control import *
from .instruct import *
from .card import *
from .clip import *
