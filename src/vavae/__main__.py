"""`python -m vavae`: the command `vavae` if its script is not on the path, for example under `torchrun -m vavae`."""

from vavae.cli import main

if __name__ == "__main__":
    main()
