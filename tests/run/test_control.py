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
