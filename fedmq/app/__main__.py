"""`python -m fedmq.app`: the command line, for where the console script is not on the path."""

from .cli import main

if __name__ == "__main__":
    main()
