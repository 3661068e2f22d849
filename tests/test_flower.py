"""A server of devices against scripted nodes: what it counts, refuses, reports, saves; and one device by itself."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

import tiny
from headstart import Centralized, Cohort, Data, Experiment, FedAvg, FedSGD, ModelSpec, Optimizer, Stage, UserError
from headstart.data.decided import decisions
from headstart.data.device_data import on_device
from headstart.data.federation import named
from headstart.experiment.serialization import to_json
from headstart.flower import ServerConfig, client_app, registry, serve, wire
from headstart.flower.device import from_node
from headstart.flower.example_schema import placeholder
from headstart.learning.personalization import Curves, Personalization
from headstart.learning.rounds import Totals, aggregate_clients, round_key, seed_key
from headstart.learning.tasks import Classification
from headstart.methods import Ditto, FedPer
from headstart.models.zoo import as_model
from headstart.runs.checkpoint import read_arrays
from headstart.runs.contents import read_json
from headstart.runs.log import read_records
from headstart.runs.reading import open_runs
from headstart.training.display import describe
from headstart.training.divergence import DivergedError
from headstart.training.sampling import sample
from hostile import BROKEN_ARRAYS, REPLIES, with_arrays, with_curves, with_report
from inline_grid import InlineGrid, Node
from patience import HANGS, factor

# However slow the machine is, a run that is to continue loses no patience; one that is to end has its own.
CONFIG = ServerConfig(nodes=2, deadline=0.2, patience=HANGS)
PLAN = Experiment(
    "scripted",
    stages=(Stage("step", FedSGD(0.1), Optimizer("sgd", 1.0), rounds=3, clients_per_round=4, weighting="uniform"),),
    data=Data(train=0.5, validation=0.25),
    model=ModelSpec("logistic"),
    task=Classification(),
    personalization=Personalization(epochs=2),
    evaluate_every=1,
)
SCHEMA = {
    "x": "float32[3]",
    "y": "int32[]",
    "has_predefined_split": True,
    "metadata": {"kind": "features", "classes": 4},
}
SIZE = 10


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Nobody waits long for the SuperLink to say that nothing came."""
    monkeypatch.setattr("headstart.flower.exchange.GRACE_SECONDS", 0.0)
    for module in ("registry", "training", "measure"):
        monkeypatch.setattr(f"headstart.flower.{module}.RETRY_SECONDS", 0.1)


def scripted(*ids: str, delta: float = 1.0, schema: Any = SCHEMA, tested: int = SIZE) -> ClientApp:
    """A ClientApp that holds clients of ten examples, and some to test on; the Δ of each is `delta` everywhere."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        record = wire.manifest_record(placeholder(schema, ids, np.array([[SIZE, tested]] * len(ids))))
        return Message(record, reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        request, params = wire.read_request(message.content), message.content.array_records[wire.PARAMS]
        n = len(request.clients)
        sums = {name: (jnp.float32(n), jnp.float32(2 * n)) for name in ("accuracy", "loss")}
        totals = Totals({}, jnp.float32(n), sums, jnp.int32(n), jnp.int32(0))
        record = wire.totals_record(totals)
        record[wire.DELTA] = ArrayRecord(
            {name: Array(np.full(array.shape, n * delta, array.dtype)) for name, array in params.items()}
        )
        return Message(record, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        request = wire.read_request(message.content)
        shape = (len(request.clients), request.epochs + 1)
        values = np.tile(np.linspace(4, 6, request.epochs + 1, dtype=np.float32), (len(request.clients), 1))
        pair = values, np.full(shape[0], SIZE, np.float32)
        curves = Curves({"accuracy": pair, "loss": pair}, np.zeros(shape), np.zeros(shape))
        return Message(wire.curves_record(curves), reply_to=message)

    return app


def grid(**changes: dict[str, Any]) -> InlineGrid:
    """Two nodes of four clients each."""
    nodes = {"north": Node(scripted("a", "b", "c", "d"), {}, "north"), "south": Node(scripted(*"efgh"), {}, "south")}
    nodes = {name: node._replace(**changes.get(name, {})) for name, node in nodes.items()}
    return InlineGrid(dict(enumerate(nodes.values(), 1)))


def run(there: InlineGrid, out, plan: Experiment = PLAN, config: ServerConfig = CONFIG) -> list[dict]:
    records: list[dict] = []
    serve(there, plan, out, config=config, on_event=records.append)
    return records


def logged(out, event: str) -> list[dict]:
    return [record for record in read_records(out / "seed-0" / "metrics.jsonl") if record["event"] == event]


def start() -> dict[str, np.ndarray]:
    model = as_model(tiny_model(), jnp.zeros((1, 3)))
    params = model.init(jax.random.fold_in(seed_key(0), 0))
    return {name: np.asarray(array) for name, array in named(params)}


def tiny_model():
    from headstart.models.zoo import ALIASES

    return ALIASES["logistic"](classes=4)


def assert_steps(out, count: int) -> None:
    """The parameters are those of the start less `count` times Δ, which is 1 everywhere."""
    arrays, _ = read_arrays(out / "seed-0" / "stage-0.safetensors")
    for name, before in start().items():
        np.testing.assert_allclose(arrays[name], before - count, rtol=1e-6)


def only_in(number: int, change: Callable[[Message], Message | None]) -> Callable[[Message], Message | None]:
    """The change, made to replies of the training of this round alone."""

    def spoil(reply: Message) -> Message | None:
        metadata = reply.metadata
        mine = metadata.message_type == MessageType.TRAIN and metadata.group_id == str(number)
        return change(reply) if mine else reply

    return spoil


def test_a_run_on_nodes_leaves_a_run_folder_that_can_be_reported(tmp_path):
    run(grid(), tmp_path)
    assert_steps(tmp_path, 3)
    assert [r["round"] for r in logged(tmp_path, "evaluation")] == [0, 1, 2, 3]
    for record in logged(tmp_path, "round"):
        assert (record["clients"], record["dropped"], record["missing"]) == (4, 0, 0)
        assert record["training"] == {"accuracy": 0.5, "loss": 0.5}
        assert record["sent_bytes"] > 0 < record["received_bytes"]
    found = open_runs([tmp_path])[0]
    assert found.reached == {0: 3}
    assert found.stage_results[0].reports[0]["test"]["accuracy"]["difference"]["mean"] == pytest.approx(0.2)


def test_cohorts_are_those_of_a_run_on_one_machine(tmp_path):
    plan = replace(PLAN, stages=(replace(PLAN.stages[0], clients_per_round=2),))
    there = grid()
    run(there, tmp_path, plan)
    members = read_json(tmp_path / "seed-0" / "members.json")
    for number in (1, 2, 3):
        requests = [wire.read_request(m.content) for m in there.sent if m.metadata.message_type == MessageType.TRAIN]
        asked = {client for request in requests if request.round == number for client in request.clients}
        assert asked == {members["train"][i] for i in sample(0, number, 2, 4)}


SPOILED = {**REPLIES, "silence": (lambda reply: None, "no reply within")}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_reply_is_reported_with_its_node_and_the_round_goes_on(case, tmp_path):
    spoil, reason = SPOILED[case]
    records = run(grid(south={"spoil": only_in(2, spoil)}), tmp_path)
    assert_steps(tmp_path, 3)
    fault = next(record for record in logged(tmp_path, "fault") if record["round"] == 2)
    assert fault["node"] == "south" and set(fault["clients"]) <= set("efgh")
    assert reason in fault["reason"]
    assert len(fault["reason"]) < 12_000 and fault["reason"].isprintable()
    second = logged(tmp_path, "round")[1]
    lost = len(fault["clients"])
    assert second["clients"] == 4 - lost and second["missing"] + second["dropped"] == lost
    assert any("south" in describe(record) for record in records)


def test_a_node_that_says_its_own_update_is_not_finite_is_reported(tmp_path):
    def spoil(reply: Message) -> Message:
        report = json.loads(str(reply.content.config_records[wire.REPORT]["json"]))
        return with_report(clients=report["clients"] - 1, dropped=1, weight=report["weight"] - 1)(reply)

    run(grid(south={"spoil": only_in(2, spoil)}), tmp_path)
    assert "not finite" in logged(tmp_path, "fault")[0]["reason"]
    assert logged(tmp_path, "round")[1]["dropped"] == 1


def test_a_node_that_comes_late_trains_from_then_on_and_is_never_a_test(tmp_path):
    there = grid()

    def join(there: InlineGrid, message: Message) -> None:
        if message.metadata.group_id == "2":
            there.nodes[3] = Node(scripted("late"), {}, "late")

    there.before_push = join
    run(there, tmp_path, replace(PLAN, stages=(replace(PLAN.stages[0], clients_per_round=9),)))
    assert [record["clients"] for record in logged(tmp_path, "round")] == [4, 4, 5]
    members = read_json(tmp_path / "seed-0" / "members.json")
    assert "late" in members["train"] and "late" not in members["test"] + members["validation"]


def test_a_round_without_replies_is_done_again(tmp_path):
    there, silent = grid(), [True, True]
    spoil = only_in(2, lambda reply: silent.pop() and None if silent else reply)
    there.nodes = {number: node._replace(spoil=spoil) for number, node in there.nodes.items()}
    run(there, tmp_path)
    assert_steps(tmp_path, 3)
    assert [record["round"] for record in logged(tmp_path, "fault")] == [2, 2]


def test_a_run_without_replies_ends_and_resumes_when_repeated(tmp_path):
    there = grid(north={"spoil": only_in(2, lambda reply: None)}, south={"spoil": only_in(2, lambda reply: None)})
    with pytest.raises(UserError, match=r"round 2 had no 1 usable replies .* resumes after round 1"):
        run(there, tmp_path, config=replace(CONFIG, patience=factor()))
    assert [record["round"] for record in logged(tmp_path, "round")] == [1]
    run(grid(), tmp_path)
    assert_steps(tmp_path, 3)
    assert [record["round"] for record in logged(tmp_path, "round")] == [1, 2, 3]
    assert [record["round"] for record in logged(tmp_path, "evaluation")] == [0, 1, 2, 3]


def test_a_node_that_is_gone_is_not_asked(tmp_path):
    there = grid()

    def leave(there: InlineGrid, message: Message) -> None:
        if message.metadata.group_id == "2":
            there.nodes.pop(2, None)

    there.before_push = leave
    run(there, tmp_path, replace(PLAN, evaluate_every=0))
    north = set("abcd") & set(read_json(tmp_path / "seed-0" / "members.json")["train"])
    assert logged(tmp_path, "round")[2]["clients"] == len(north) and logged(tmp_path, "round")[2]["missing"] == 0
    assert logged(tmp_path, "fault")[0]["reason"] == "the node is gone"


def test_clients_that_could_not_be_measured_are_untested(tmp_path):
    def mute(reply: Message) -> Message | None:
        return None if reply.metadata.message_type == MessageType.EVALUATE else reply

    run(grid(south={"spoil": mute}), tmp_path, replace(PLAN, evaluate_every=0))
    members, report = read_json(tmp_path / "seed-0" / "members.json"), read_json(tmp_path / "seed-0" / "stage-0.json")
    lost = [client for client in members["validation"] + members["test"] if client in "efgh"]
    assert lost and report["validation"]["untested"] + report["test"]["untested"] == len(lost)
    assert {r["node"] for r in logged(tmp_path, "fault")} == {"south"}


def test_too_few_nodes_end_the_run_with_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"2 of 3 nodes reported their clients .* start more nodes, or ask for fewer"):
        run(grid(), tmp_path, config=replace(CONFIG, nodes=3, patience=factor()))


def test_a_node_with_other_examples_is_left_out(tmp_path):
    there = grid()
    other = scripted("x", "y", schema=SCHEMA | {"metadata": {"kind": "features", "classes": 5}})
    there.nodes[3] = Node(other, {}, "odd")
    run(there, tmp_path, config=replace(CONFIG, nodes=3))
    fault = logged(tmp_path, "fault")[0]
    assert fault["node"] == "odd" and "classes is 5 here and 4 there" in fault["reason"]
    assert_steps(tmp_path, 3)


def test_nobody_takes_over_anothers_clients(tmp_path):
    there = grid()
    there.nodes[3] = Node(scripted("a", "b", delta=100.0), {}, "thief")
    run(there, tmp_path, config=replace(CONFIG, nodes=3))
    fault = logged(tmp_path, "fault")[0]
    assert fault["node"] == "thief" and "north has them already" in fault["reason"]
    assert_steps(tmp_path, 3)


def test_a_diverged_run_stops_with_its_round(tmp_path):
    spoil = only_in(2, with_arrays(lambda array: np.full_like(array, np.nan)))
    with pytest.raises(DivergedError, match="round 2"):
        run(grid(north={"spoil": spoil}, south={"spoil": spoil}), tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stages": (Centralized("all", Optimizer(), 2),)}, "devices keep their data"),
        ({"stages": (Stage("own", Ditto(), Optimizer("sgd", 1.0), 2),)}, "devices do not offer yet"),
        ({"stages": (Stage("own", FedPer(), Optimizer("sgd", 1.0), 2),)}, "devices do not offer yet"),
        ({"personalization": Personalization(learning_rates=(0.1, 0.3))}, "devices personalize at one learning rate"),
    ],
    ids=["centralized", "Ditto", "FedPer", "rates"],
)
def test_what_devices_cannot_do_is_refused(changes, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        run(grid(), tmp_path, replace(PLAN, **changes))


STEP = PLAN.stages[0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stages": (replace(STEP, server=Optimizer("adam", 1e-3, {"b1": "x"})),)}, "optimizer 'adam'"),
        ({"personalization": Personalization(Optimizer("adam", 1e-3, {"b1": "x"}))}, "optimizer 'adam'"),
        ({"model": ModelSpec("mlp", {"widths": [2**19, 2**19]})}, "more than this machine's memory"),
        ({"stages": (replace(STEP, update=FedAvg(1, 0.1, 2**17)),)}, "batches of 131072 examples"),
        ({"stages": (replace(STEP, stop_at=0.9),), "evaluate_every": 0}, "are never evaluated along training"),
        ({"stages": (replace(STEP, stop_at=0.9),), "data": Data(train=0.5, validation=0.0)}, "are never evaluated"),
        ({"stages": (replace(STEP, stop_at=0.9), replace(STEP, name="next"))}, "only the last may end early"),
    ],
    ids=["server", "recipe", "memory", "batch", "no evaluation", "no validation", "stage"],
)
def test_what_a_run_on_one_machine_refuses_is_refused_before_there_is_a_folder(changes, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        run(grid(), tmp_path / "out", replace(PLAN, **changes))
    assert not (tmp_path / "out").exists()


def test_clients_of_whom_none_can_be_measured_are_refused_before_there_is_a_folder(tmp_path):
    untested = {"north": {"app": scripted(*"abcd", tested=0)}, "south": {"app": scripted(*"efgh", tested=0)}}
    with pytest.raises(UserError, match="nothing could be measured"):
        run(grid(**untested), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_alone_is_trained_where_nobody_is_to_be_measured(tmp_path):
    run(grid(), tmp_path, replace(PLAN, data=Data(train=0.5, validation=0.0), test=False))
    assert (tmp_path / "seed-0" / "stage-0.json").exists()


@pytest.mark.parametrize(
    "schema",
    [{}, SCHEMA | {"x": "float32[999999999,999]"}, SCHEMA | {"x": "nothing[3]"}, SCHEMA | {"metadata": 3}],
)
def test_a_node_cannot_say_just_anything_of_its_examples(schema):
    record = RecordDict({wire.REPORT: wire._document({"ids": ["a"], "sizes": [[1, 1]], "schema": schema})})
    with pytest.raises(UserError, match="does not say what its examples look like"):
        wire.read_manifest(record)


@pytest.mark.parametrize("case", BROKEN_ARRAYS)
def test_an_array_that_is_none_is_refused(case):
    change, complaint = BROKEN_ARRAYS[case]
    array = Array(np.zeros((3, 4), np.float32))
    array.data = change(array.data)
    with pytest.raises(UserError, match=complaint):
        wire.from_arrays(ArrayRecord({"": array}), np.zeros((3, 4), np.float32))


@pytest.mark.parametrize("array", [np.float32(3), np.arange(12.0).reshape(3, 4).T, np.zeros((0, 2), np.uint8)])
def test_an_array_comes_back_bit_for_bit(array):
    (back,) = wire.from_arrays(wire.to_arrays((array,)), (array,))
    assert back.dtype == array.dtype and back.shape == array.shape and back.tobytes() == array.tobytes()
    assert back.flags.writeable and back.flags.c_contiguous


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"ids": ["a", "a"]}, "without repetitions"),
        ({"ids": [["a"], {}]}, r"its report.ids\[0\] is \['a'\], and must be text"),
        ({"ids": ["a", "x" * 1001]}, r"its report.ids\[1\]"),
        ({"ids": {"a": 1}}, "must be a list"),
        ({"sizes": [[1, 1]]}, "the number of its sizes is 1"),
        ({"sizes": [[1, 1], [1, -1]]}, "must be a whole number from 0"),
        ({"sizes": [[1, 1], [1, 2**70]]}, "must be a whole number from 0"),
        ({"sizes": [[1, 1], [1, 1, 1]]}, "must be a list of 2 to 2"),
        ({"sizes": [[1, 1], [1.0, 1]]}, "must be a whole number"),
        ({"schema": SCHEMA | {"x": {"a": "float32[2]", "b": ["uint8[99999,99999]"]}}}, "what its examples look like"),
        ({"schema": SCHEMA | {"x": "O[3]"}}, "what its examples look like"),
        ({"schema": SCHEMA | {"x": "V99999999[3]"}}, "what its examples look like"),
        ({"schema": SCHEMA | {"x": "float32[-3]"}}, "what its examples look like"),
        ({"schema": SCHEMA | {"has_predefined_split": "no"}}, "true or false"),
        ({"schema": SCHEMA | {"metadata": {"kind": ["image"]}}}, "metadata.kind"),
        ({"schema": SCHEMA | {"metadata": {"classes": 2**40}}}, "metadata.classes"),
        ({"schema": SCHEMA | {"metadata": {"labels": [{}]}}}, "metadata.labels"),
    ],
)
def test_a_manifest_that_is_none_is_refused(changes, complaint):
    report = {"ids": ["a", "b"], "sizes": [[1, 1], [2, 0]], "schema": SCHEMA}
    wire.read_manifest(RecordDict({wire.REPORT: wire._document(report)}))
    with pytest.raises(UserError, match=complaint):
        wire.read_manifest(RecordDict({wire.REPORT: wire._document(report | changes)}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda name, array: np.full_like(array, np.nan), "none of its clients has metrics that are finite"),
        (lambda name, array: array.astype(np.float16), "should be float"),
        (lambda name, array: array[:0], "should be float"),
        (lambda name, array: -array if name.endswith("[1]") else array, "its counts of accuracy"),
        (lambda name, array: array * 9 if "accuracy'][0]" in name else array, "its sums of accuracy"),
    ],
)
def test_an_evaluation_that_is_none_is_refused(change, reason, tmp_path):
    run(grid(south={"spoil": with_curves(change)}), tmp_path, replace(PLAN, evaluate_every=0))
    faults = logged(tmp_path, "fault")
    assert {fault["node"] for fault in faults} == {"south"} and all(reason in fault["reason"] for fault in faults)
    report = read_json(tmp_path / "seed-0" / "stage-0.json")
    assert report["test"]["accuracy"]["personalized"]["mean"] == pytest.approx(0.6)


def test_a_client_whose_metrics_are_not_finite_is_reported_and_not_evaluated(tmp_path):
    def first_is_nan(name: str, array: np.ndarray) -> np.ndarray:
        return np.concatenate([np.full_like(array[:1], np.nan), array[1:]])

    run(grid(north={"spoil": with_curves(first_is_nan)}), tmp_path, replace(PLAN, evaluate_every=0))
    fault = logged(tmp_path, "fault")[-1]
    assert fault["node"] == "north" and len(fault["clients"]) == 1 and "not evaluated" in fault["reason"]
    report = read_json(tmp_path / "seed-0" / "stage-0.json")
    assert report["validation"]["untested"] + report["test"]["untested"] == 1
    assert report["test"]["accuracy"]["personalized"]["mean"] == pytest.approx(0.6)


def test_a_reply_that_flower_cannot_read_is_its_nodes_fault_alone(tmp_path):
    class Broken(Message):
        def has_content(self) -> bool:
            raise UnicodeDecodeError("utf-8", b"", 0, 1, "what a broken object raises where it is pulled")

    def broken(reply: Message) -> Message:
        reply.__class__ = Broken
        return reply

    run(grid(south={"spoil": only_in(2, broken)}), tmp_path)
    assert logged(tmp_path, "fault")[0]["reason"] == "Flower cannot read the reply (UnicodeDecodeError)"
    assert_steps(tmp_path, 3)


def test_an_array_that_lies_about_its_size_takes_no_memory():
    array = Array(np.zeros(3, np.float32))
    array.data = array.data.replace(b"(3,), }" + b" " * 12, b"(3000000000000,), }")
    with pytest.raises(UserError, match="should be"):
        wire.from_arrays(ArrayRecord({"": array}), np.zeros(3, np.float32))


# One device by itself.


def own_clients(context: Context):
    return tiny.federation()


def ask(
    app: ClientApp, kind: str, experiment: Experiment = PLAN, params: Any = None, config: Any = None, **fields: Any
) -> Message:
    return send(app, kind, wire.request_record(wire.Request(to_json(experiment), **fields), params), config)


def send(app: ClientApp, kind: str, content: RecordDict, config: Any = None) -> Message:
    there = InlineGrid({1: Node(app, config or {})})
    message = Message(content, 1, kind)
    there.push_messages([message])
    return next(iter(there.pull_messages([message.metadata.message_id])))


def model_params():
    return as_model(tiny_model(), jnp.zeros((1, 3))).init(jax.random.key(3))


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_device_aggregates_its_clients_as_a_round_does(lanes):
    stage = Stage("two", FedAvg(2, 0.1, 3), Optimizer(), 2, 3)
    plan, params, federation = replace(PLAN, stages=(stage,)), model_params(), tiny.federation()
    app = client_app(plan, own_clients, lanes=lanes)
    reply = ask(app, MessageType.TRAIN, plan, params, round=4, seed=5, clients=("a", "c", "b"))
    model = as_model(tiny_model(), jnp.zeros((1, 3)))
    aggregate = jax.jit(aggregate_clients(Classification(), model, stage.update))
    cohort = Cohort(on_device(federation)(np.array([0, 1, 2])))
    expected, _ = aggregate(params, cohort, round_key(seed_key(5), 4))
    totals = wire.read_totals(reply.content, expected, max_weight=20.0, clients=3)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), totals, expected)


def refusal(reply: Message) -> str:
    assert reply.has_error()
    return str(reply.error.reason)


def test_a_device_takes_part_in_its_own_experiment_alone():
    other = replace(PLAN, stages=(replace(PLAN.stages[0], update=FedSGD(9.0)),))
    app = client_app(PLAN, own_clients)
    assert "other stages than the one of this node" in refusal(ask(app, MessageType.TRAIN, other, model_params()))


def test_a_device_imports_nothing_that_its_owner_does_not_name():
    plan = replace(PLAN, model=ModelSpec("os:system"))
    assert "names code in the module 'os'" in refusal(ask(client_app(None, own_clients), MessageType.QUERY, plan))


def test_a_device_says_no_more_of_a_failure_than_it_must(capsys):
    def broken(context: Context):
        raise OSError("/home/patient/records.npz")

    reason = refusal(ask(client_app(PLAN, broken), MessageType.QUERY))
    assert reason == "its data cannot be loaded; the node's own log says why"
    assert "/home/patient/records.npz" in capsys.readouterr().err


def test_a_device_trains_no_client_it_does_not_hold():
    reply = ask(client_app(PLAN, own_clients), MessageType.TRAIN, params=model_params(), clients=("nobody",))
    assert refusal(reply) == "the client 'nobody' is not here"


def test_what_a_device_says_of_its_clients_holds_no_example():
    reply = ask(client_app(PLAN, own_clients), MessageType.QUERY)
    manifest = wire.read_manifest(reply.content)
    assert not reply.content.array_records and manifest.ids == tuple("abcde")
    assert manifest.schema == SCHEMA | {"x": "float64[3]"}


# What a server cannot have of a device.

WARD = Data("devices", {"client": "site", "target": "y", "features": ["age"], "classes": 2})


@pytest.fixture
def patients(tmp_path):
    """A file with more in it than an experiment is about."""
    rows = [f"s{i % 2},Patient {i},{'flu' if i % 3 else 'cold'} {i},{20 + i},{i % 2}" for i in range(12)]
    path = tmp_path / "patients.csv"
    path.write_text("\n".join(["site,name,diagnosis,age,y", *rows]) + "\n")
    return str(path)


OWN = 'client=site target=y features=age classes="2"'


@pytest.mark.parametrize(
    ("app", "config"),
    [
        (client_app(), {"data-options": OWN}),
        (client_app(options=WARD.options), {}),
        (client_app(replace(PLAN, data=WARD)), {}),
        (client_app(options={"target": "name"}), {"data-options": OWN}),
    ],
    ids=["of the node", "of the app", "of the experiment", "of the node before the app"],
)
def test_the_device_alone_decides_how_its_file_is_read(app, config, patients):
    config = {"data": patients, **config}
    for options in ({}, WARD.options):
        reply = ask(app, MessageType.QUERY, replace(PLAN, data=replace(WARD, options=options)), config=config)
        manifest = wire.read_manifest(reply.content)
        assert manifest.ids == ("s0", "s1") and manifest.schema["x"] == "float64[1]"
    for name, value in (("client", "name"), ("target", "diagnosis"), ("features", ["name"]), ("split", "name")):
        request = replace(PLAN, data=replace(WARD, options={**WARD.options, name: value}))
        reason = refusal(ask(app, MessageType.QUERY, request, config=config))
        assert f"has the option {name!r} of the data's reader" in reason and "Patient" not in reason


@pytest.fixture
def incomes(tmp_path):
    """The same examples with a column that is not for training: by ward as numbers in a table, and as arrays."""
    ward, y, age, income = np.arange(8) // 4, np.arange(8) % 2, np.arange(8) + 20.0, np.arange(8) * 1e3
    np.savez(tmp_path / "arrays.npz", client=ward, y=y, x=np.stack([age, age], 1), income=income)
    table = np.stack([ward, y, age, income], 1)
    np.savetxt(tmp_path / "table.csv", table, "%g", ",", header="client,y,age,income", comments="")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "asked", "options"),
    [
        ("arrays.npz", ["income"], ""),
        ("arrays.npz", ["x", "income"], ""),
        ("table.csv", ["age", "income", "client"], ""),
        ("table.csv", ["age", "y"], ""),
        ("table.csv", ["age"], ""),
        ("table.csv", ["age", "income"], "features=age"),
    ],
)
@pytest.mark.parametrize("app", [client_app(), client_app(PLAN)], ids=["any experiment", "one experiment"])
def test_a_request_chooses_no_columns_by_what_is_decided(app, file, asked, options, incomes, capsys):
    config = {"data": str(incomes / file), "data-options": options}
    reason = refusal(ask(app, MessageType.QUERY, config=config, decided={"kind": "features", "features": asked}))
    assert reason == "its data cannot be loaded; the node's own log says why"
    assert "has the features" in capsys.readouterr().err


def test_what_is_decided_orders_a_devices_own_features(incomes):
    context = Context(0, 0, {"data": str(incomes / "table.csv")}, RecordDict(), {})
    own = from_node(context)
    ordered = from_node(context, decided={"features": ["income", "age"]})
    assert ordered.metadata["features"] == ["income", "age"]
    rows = on_device(own)(np.array([0]), own.training_part), on_device(ordered)(np.array([0]), own.training_part)
    np.testing.assert_array_equal(rows[0].block.x[:, ::-1], rows[1].block.x)


def test_options_of_a_node_that_cannot_be_read_are_told_to_the_node_alone(patients, capsys):
    for options in ("client", "client='site"):
        reply = ask(client_app(), MessageType.QUERY, config={"data": patients, "data-options": options})
        assert refusal(reply) == "its data cannot be loaded; the node's own log says why"
        assert "data-options" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "fields", "sentence"),
    [
        ({"data": Data(train=0.5, validation=0.25, adapt_examples=1)}, {}, "another data.adapt_examples"),
        ({}, {"epochs": 1000}, "the request is for 1000 epochs, more than its experiment's 2"),
        ({"personalization": Personalization(epochs=1000)}, {"epochs": 1000}, "other personalization"),
        ({"task": None}, {}, "other task"),
    ],
)
def test_a_server_cannot_ask_a_device_of_one_experiment_for_more(changes, fields, sentence):
    plan = replace(PLAN, **changes)
    reply = ask(client_app(PLAN, own_clients), MessageType.EVALUATE, plan, model_params(), clients=("a",), **fields)
    assert sentence in refusal(reply)


@pytest.mark.parametrize(
    "fields",
    [
        {"clients": ("a", "a")},
        {"clients": (["a"],)},
        {"stage": -1},
        {"round": 2**40},
        {"seed": 10**300},
        {"epochs": 0.5},
        {"x64": "yes"},
        {"experiment": []},
        {"experiment": {"type": "headstart.__main__.main"}},
        {"experiment": {"type": ["headstart.Experiment"]}},
        {"experiment": json.loads('{"a":' * 70 + "1" + "}" * 70)},
    ],
)
def test_a_request_that_is_none_is_refused_with_a_sentence(fields):
    content = wire.request_record(wire.Request(to_json(PLAN))._replace(**fields), model_params())
    reply = send(client_app(None, own_clients), MessageType.TRAIN, content)
    assert "the node's own log" not in refusal(reply) and len(refusal(reply)) < 700


def dark_or_not(path, ids, border):
    """Pictures of a light square before a background of this level."""
    x = np.full((4 * len(ids), 28, 28), border, np.uint8)
    x[:, 8:20, 8:20] = 250
    np.savez(path, client=np.repeat(ids, 4), x=x, y=np.arange(len(x)) % 2)
    return str(path)


def test_all_devices_read_pictures_and_labels_as_the_run_decided(tmp_path):
    plan = replace(PLAN, model=ModelSpec("logistic"), data=Data("devices"))
    files = [dark_or_not(tmp_path / f"{border}.npz", [f"{border}a", f"{border}b"], border) for border in (10, 20, 70)]
    app = client_app(plan)

    def manifest(path, **fields):
        return wire.read_manifest(ask(app, MessageType.QUERY, plan, config={"data": path}, **fields).content)

    found = [manifest(path) for path in files]
    assert [(each.inverted, each.background) for each in found] == [(False, 10), (False, 20), (False, 70)]
    nodes = {number: registry.Node(number, str(number), each) for number, each in enumerate(found)}
    metadata = registry.decided_among(registry.Registry(nodes=nodes, schema=found[0].schema))
    decided = decisions(metadata)
    assert not decided["inverted"] and decided["background"] == 20 and decided["labels"] == ["0", "1"]
    assert not any(manifest(path, decided=decided).inverted for path in files)
    with np.load(files[0]) as held:
        np.savez(files[0], client=held["client"], x=held["x"], y=held["y"] * 0 + 1)
    one_label = manifest(files[0], decided=decided)
    assert manifest(files[0]).schema != found[0].schema and one_label.schema == found[0].schema
    light = dark_or_not(tmp_path / "light.npz", ["l"], 254)
    # Why is for the node's own log; the server learns no more.
    reason = refusal(ask(app, MessageType.QUERY, plan, config={"data": light}, decided=decided))
    assert reason == "its data cannot be loaded; the node's own log says why"


@pytest.mark.parametrize("decided", [{"inverted": "yes"}, {"labels": [["a"]]}, {"background": 256}, {"path": "x"}])
def test_a_request_with_other_decisions_is_refused(decided):
    reason = refusal(ask(client_app(PLAN, own_clients), MessageType.QUERY, decided=decided))
    assert "decided" in reason
