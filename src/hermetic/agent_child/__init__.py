"""The child: one process tree per turn, in the agent's own environment.

`python -I -m hermetic.agent_child --control-fd N [--interpreter PATH]` with commands on fd 0, events on fd 1, prints on fd 2. Three processes:
the *keeper* (keeper.py) answers for the tree, *init* (init.py) is the tree's root, the *agent* (session.py) runs the
adapter, in the Python that `--interpreter` names (interpreter.py). Standard library and msgspec alone, no event loop: it must run in any environment an agent lives in.
"""
