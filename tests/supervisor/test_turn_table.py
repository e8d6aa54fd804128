"""The turn's state machine holds its promises for every order in which things can happen."""

import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.protocol.events import StateName, Verdict
from hermetic.supervisor.turn import TABLE, Action, Phase, TurnState, What, diagram, step

HAPPENINGS = st.lists(st.tuples(st.sampled_from(What), st.sampled_from([None, *get_args(Verdict)])), max_size=30)
LIVE = [phase for phase in Phase if phase is not Phase.ENDED]


def play(happenings, state=None):
    """→ the last state and all actions, in order."""
    state, done = state or TurnState(), []
    for what, verdict in happenings:
        state, actions = step(state, what, verdict)
        done += actions
    return state, done


@given(HAPPENINGS)
def test_a_turn_ends_at_most_once_and_nothing_is_due_after_its_end(happenings):
    state, done = play(happenings)
    assert done.count(Action.END) == (state.phase is Phase.ENDED)
    if Action.END in done:
        assert done[-1] is Action.END


@given(HAPPENINGS)
def test_once_the_tree_is_dead_every_started_turn_has_ended_with_a_verdict(happenings):
    state, _ = play(happenings)
    if state.phase is Phase.QUEUED:
        return
    state, _ = play([(What.EXITED, None)], state)
    assert state.phase is Phase.ENDED
    assert state.verdict in get_args(Verdict)


@given(HAPPENINGS)
def test_the_first_verdict_stays(happenings):
    state = TurnState()
    for what, verdict in happenings:
        before = state.verdict
        state, _ = step(state, what, verdict)
        assert before is None or state.verdict == before


@given(HAPPENINGS)
def test_a_child_is_started_at_most_once_and_never_after_a_stop(happenings):
    state, done = TurnState(), []
    for what, verdict in happenings:
        state, actions = step(state, what, verdict)
        assert not (Action.SPAWN in actions and (what is not What.CLAIMED or Action.END in done))
        done += actions
    assert done.count(Action.SPAWN) <= 1


@pytest.mark.parametrize("phase", LIVE)
def test_a_stop_is_accepted_in_every_live_phase(phase):
    state, actions = step(TurnState(phase), What.STOP, "cancelled")
    if phase is Phase.CANCELLING:
        assert not actions, "a second stop changes nothing"
    else:
        assert actions
        assert state.verdict == "cancelled"


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.RUNNING, Phase.WAITING, Phase.ENDING])
def test_a_stop_that_is_not_heeded_ends_in_a_kill(phase):
    _, actions = play([(What.STOP, "cancelled"), (What.TIMER, None)], TurnState(phase))
    assert Action.KILL in actions


def test_cancel_before_the_start_never_starts_a_child():
    state, actions = play([(What.STOP, "cancelled"), (What.CLAIMED, None)])
    assert (state.phase, state.verdict, actions) == (Phase.ENDED, "cancelled", [Action.END])


def test_a_result_that_came_before_the_cancel_stands():
    state, _ = play([(What.FINISHED, "done"), (What.STOP, "cancelled"), (What.EXITED, None)], TurnState(Phase.RUNNING))
    assert state.name == "done"


def test_a_stopped_turn_is_cancelling_until_its_tree_is_dead():
    state, _ = play([(What.STOP, "cancelled"), (What.FINISHED, "done"), (What.TIMER, None)], TurnState(Phase.RUNNING))
    assert state.name == "cancelling"


def test_every_state_name_on_the_wire_exists():
    names = {phase.value for phase in LIVE} | set(get_args(Verdict))
    assert names == set(get_args(StateName))


def test_every_phase_can_be_reached_and_left():
    into = {phase for phase, _ in TABLE.values()}
    assert into | {Phase.QUEUED} == set(Phase)
    assert {phase for phase, _ in TABLE} == set(LIVE)


def test_the_diagram_in_the_docs_is_the_table():
    text = (Path(__file__).parents[2] / "docs" / "turn.md").read_text()
    assert re.search(r"```mermaid\n(.*?)```", text, re.DOTALL)[1] == diagram()


def test_the_module_that_decides_imports_no_trio():
    import subprocess
    import sys

    code = "import sys, hermetic.supervisor.turn; sys.exit('trio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
