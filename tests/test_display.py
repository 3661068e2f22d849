"""The display of a run: live on a terminal, plain lines in a pipe."""

from io import StringIO

from rich.console import Console

from headstart.training.display import Follower, describe, live_display

ROUND = {
    "event": "round",
    "round": 4,
    "stage": "[/x] FedAvg",
    "training": {"accuracy": 0.5, "loss": None},
    "clients": 9,
    "dropped": 1,
    "seconds": 2.0,
    "seed": 1,
}
EVALUATION = {
    "event": "evaluation",
    "round": 4,
    "stage": "FedAvg",
    "validation": {"accuracy": [0.25, 0.5, 0.75]},
    "clients": 5,
    "seconds": 1.0,
    "seed": 1,
}


def displayed(*records: dict, terminal: bool) -> tuple[str, Follower]:
    text = StringIO()
    console = Console(file=text, force_terminal=terminal, width=120, color_system=None)
    follower = Follower(rounds=10, seeds=2, first_seed=0)
    with live_display(console, follower, "title") as on_event:
        for record in records:
            on_event(record)
    return text.getvalue(), follower


def test_a_terminal_sees_both_accuracies_the_loss_the_pace_and_the_time_left():
    text, follower = displayed(ROUND, EVALUATION, terminal=True)
    assert follower.done == 14
    assert follower.clients_per_second == 5.0
    for part in ("title", "14/20", "0.2500", "0.7500", "accuracy 0.5000", "loss -", "5.0 clients/s", "left"):
        assert part in text, part


def test_a_pipe_gets_a_line_per_round_and_evaluation_and_none_of_the_past():
    text, _ = displayed({**ROUND, "round": 3, "past": True}, ROUND, EVALUATION, terminal=False)
    assert text.splitlines() == [
        "seed 1 round 4 ([/x] FedAvg): training accuracy 0.5000 loss -, 4.5 clients/s,"
        " 1 of 10 replies were not finite and left out",
        "seed 1 round 4 (FedAvg): validation accuracy initial 0.2500 personalized 0.7500",
    ]


def test_a_round_on_devices_says_whose_replies_are_missing_and_what_crossed_the_network():
    traffic = {"missing": 2, "sent_bytes": 2_553_116, "received_bytes": 2_547_192}
    assert describe(ROUND | traffic) == (
        "seed 1 round 4 ([/x] FedAvg): training accuracy 0.5000 loss -, 4.5 clients/s,"
        " 1 of 12 replies were not finite, or refused, and left out, 2 of 12 did not come, 2.6 MB sent, 2.5 MB received"
    )
    fault = {"event": "fault", "round": 4, "stage": "FedAvg", "seed": 1, "node": "south", "reason": "no reply"}
    assert describe(fault | {"clients": []}) == "seed 1 round 4 (FedAvg): node south: no reply"
    assert describe(fault | {"clients": ["a", "b"]}).endswith("node south: no reply (clients a, b)")


def test_where_only_the_initial_model_is_evaluated_nothing_is_said_of_a_personalized_one():
    record = EVALUATION | {"validation": {"accuracy": [0.25]}}
    assert describe(record) == "seed 1 round 4 (FedAvg): validation accuracy initial 0.2500"


def test_rounds_that_are_past_do_not_count_for_the_pace():
    _, follower = displayed({**ROUND, "past": True}, terminal=True)
    assert follower.done == 14 and follower.clients_per_second == 0.0 and follower.time_left == "?"
