"""`python -m service` is `metareward`."""

from service.cli import main

main()
