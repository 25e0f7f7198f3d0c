"""`python -m visor_gateway` is the command `visor-gateway`."""

from .cli.gateway import main

if __name__ == "__main__":
    main()
