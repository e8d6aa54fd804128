"""Entry. The order matters: the streams are claimed before anything that could print is imported."""

from __future__ import annotations

import sys

from hermetic.agent_child import stdio


def main() -> None:
    events_fd, commands_fd = stdio.claim()
    from hermetic.agent_child import keeper

    keeper.main(sys.argv[1:], events_fd, commands_fd)


if __name__ == "__main__":  # an agent that uses multiprocessing's spawn imports this module once more
    main()
