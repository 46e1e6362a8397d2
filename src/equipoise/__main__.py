"""`python -m equipoise`: the command line of the bench."""

from equipoise.bench.__main__ import main

if __name__ == "__main__":
    main()
