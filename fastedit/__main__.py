"Run the command line: `python -m fastedit`."
from .cli import main

if __name__ == "__main__": main()
