"""`python -m vavae`: the command `vavae` where its script is not on the path, under `torchrun -m vavae` say."""

from vavae.cli import main

if __name__ == "__main__":
    main()
