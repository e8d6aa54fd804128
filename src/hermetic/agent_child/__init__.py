"""The child's side: a warm launcher per agent and profile, and one process tree per turn, in the agent's environment.

The *launcher* (launcher.py) forks; *init* (init.py) is the root of a turn's tree, the first in its namespaces; the
*agent* (agent.py, session.py) runs the adapter, in the forked process or in a Python of its own (interpreter.py). Where
there are no namespaces a *keeper* (keeper.py) stands between launcher and init. Standard library and msgspec alone, no
event loop: it must run in any environment an agent lives in.
"""
