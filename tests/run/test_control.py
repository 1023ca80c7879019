"""The wire between a run's driver and its workers."""

from __future__ import annotations


def test_a_mailbox_that_is_gone_costs_messages_and_not_the_run(ray_cluster: str) -> None:
    import ray

    from raygpt.run.control import ControlLink, Mailbox, make_control

    control = make_control()
    link, mailbox = ControlLink(control), Mailbox(control)
    link.send("note", "hello")
    link.close()
    assert mailbox.take(2.5) == [("note", "hello")]
    assert ray.get(control.exchange.remote([])) == (False, 2.5), "what the run has cost goes down"
    ray.kill(control)
    assert mailbox.take() == []
    mailbox.request_stop()
    assert not link.stop_requested()


def test_workers_are_asked_to_save_and_stop_unless_the_run_is_another_s(ray_cluster: str) -> None:
    import ray

    from raygpt.run.control import Mailbox, make_control
    from raygpt.run.stop import DISPLACED, SIGNAL, StopToken

    for reason, asked in ((DISPLACED, False), (SIGNAL, True)):
        control, token = make_control(), StopToken()
        Mailbox(control).follow(token)
        token.request(reason)
        assert ray.get(control.exchange.remote([])) == (asked, None)


def test_what_workers_warn_of_is_shown_once_with_run_rank_and_node(ray_cluster: str) -> None:
    import logging
    import socket
    import warnings

    import pytest
    import ray

    from raygpt.run.attribution import MOST, Voice, speaker
    from raygpt.run.control import ControlLink, Mailbox, make_control

    control = make_control()
    here = socket.gethostname()
    shown = warnings.showwarning
    with pytest.raises(ValueError), Voice(control, speaker("r", 3)):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("the clock runs back", stacklevel=1)
            warnings.warn("old name", FutureWarning, stacklevel=1)  # for programmers
        logging.getLogger("a.library").warning("slow\ndisk")
        logging.getLogger("a.library").info("all is well")
        raise ValueError("no number")
    with Voice(control, speaker("r", 4)) as other:
        logging.getLogger("a.library").warning("slow disk")  # said already
        for number in range(2 * MOST):
            other.say(f"number {number}")
    logging.getLogger("a.library").warning("after the end")
    link = ControlLink(control, speaker("r", 0))
    link.send("note", "hello")
    link.send("end", {})
    link.close()
    told = Mailbox(control).take()
    assert told[:3] == [
        ("note", f"[r rank 3 {here}] UserWarning: the clock runs back"),
        ("note", f"[r rank 3 {here}] a.library: slow disk"),
        ("note", f"[r rank 3 {here}] ValueError: no number"),
    ]
    assert told[-2:] == [("note", f"[r rank 0 {here}] hello"), ("end", {})]
    assert len(told) == 3 + (MOST - 1) + 2 and all("rank 4" in text for _, text in told[3:-2])
    assert warnings.showwarning is shown
    ray.kill(control)
