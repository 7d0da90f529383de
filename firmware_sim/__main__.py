"""Entry point: ``python -m freezeframe.firmware_sim serve ...`` runs a controller, ``... supply
...`` the bench supply that powers two."""

import sys
from typing import Final

USAGE: Final = "usage: python -m freezeframe.firmware_sim serve|supply [arguments]"


def main(argv: list[str]) -> int:
    match argv[:1]:
        case ["serve"]:
            from freezeframe.firmware_sim import serve

            return serve.main(argv[1:])
        case ["supply"]:
            from freezeframe.firmware_sim import supply

            return supply.main(argv[1:])
        case ["-h"] | ["--help"]:
            print(USAGE)
            return 0
        case _:
            print(USAGE, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
