"""What nerfstudio's render threads do with what is asked of them."""

from __future__ import annotations

import threading
from types import SimpleNamespace

from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine

from threevp_nerfstudio.viewer.host import NoActionLost

MOVE, OTHER, STATIC = (RenderAction(name, SimpleNamespace()) for name in ("move", "rerender", "static"))


def taken(machine: RenderStateMachine, meanwhile: RenderAction | None) -> list[RenderAction | None]:
    """What is pending after the machine's own thread took an action, when `meanwhile` came between its look and its clearing."""
    looked, came = threading.Event(), threading.Event()
    left: list[RenderAction | None] = []

    def run() -> None:
        pending = machine.next_action
        looked.set()
        came.wait(10)
        machine.render_trigger.clear()
        if pending is not None:
            machine.next_action = None
        left.append(machine.next_action)

    machine.run = run
    machine.start()
    looked.wait(10)
    if meanwhile is not None:
        machine.action(meanwhile)
    came.set()
    machine.join(10)
    return left


def machine_with(action: RenderAction, ours: bool) -> RenderStateMachine:
    machine = RenderStateMachine(SimpleNamespace(), 1.0, SimpleNamespace())
    if ours:
        NoActionLost.adopt(machine)
    machine.action(action)
    return machine


def test_what_comes_while_an_action_is_taken_is_not_lost():
    assert taken(machine_with(STATIC, ours=True), OTHER) == [OTHER]
    assert taken(machine_with(STATIC, ours=False), OTHER) == [None]  # nerfstudio's own: remove the class when this fails


def test_what_was_taken_is_cleared():
    assert taken(machine_with(MOVE, ours=True), None) == [None]
    assert isinstance(machine_with(MOVE, ours=True), NoActionLost)
