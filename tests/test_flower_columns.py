"""Tables on many nodes: preprocessing from sums, the same on all of them, and no row in any message."""

import json

import numpy as np
import pytest

pytest.importorskip("flwr")
from flwr.app import Message

import headstart as hs
from headstart.data.preprocessing import of_metadata
from headstart.flower import client_app
from headstart.flower.columns import LEAST_LABEL, fit, summary_of
from headstart.flower.example_schema import feature_schema, schema_of
from headstart.flower.server import ServerConfig, serve
from headstart.learning.optimizers import Optimizer
from headstart.learning.personalization import Personalization
from headstart.runs.contents import federation_document
from inline_grid import InlineGrid, Node

OPTIONS = "client=site target=y labels=no,yes"
PLAN = hs.Experiment(
    "tables",
    (hs.Stage("FedAvg", hs.FedAvg(1, 0.05, 8), Optimizer("sgd", 1.0), 2, 3),),
    data=hs.Data("devices", train=0.6, validation=0.2),
    personalization=Personalization(Optimizer("sgd", 0.05), 8, 1),
    evaluate_every=0,
)


def write(path, sites, rows=30):
    """A table of these sites: a number far from 0, a category with a label of one node alone, gaps, a yes or no."""
    lines = ["site,dose,ward,well,y"]
    for site in sites:
        g = np.random.default_rng(site)
        for _ in range(rows):
            dose = 5e4 + 100 * site + g.normal(0, 300)
            ward = ["north", "south", f"secret{sites[0]}", ""][g.integers(4)]
            lines.append(f"s{site},{dose:.5f},{ward},{bool(g.integers(2))},{['no', 'yes'][int(dose > 5.02e4)]}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def tables(tmp_path):
    return {number: write(tmp_path / f"{number}.csv", [2 * number, 2 * number + 1]) for number in (1, 2, 3, 4)}


def options():
    return {"client": "site", "target": "y", "labels": "no,yes"}


def test_sums_of_nodes_are_what_one_table_would_say(tables, tmp_path):
    federations = [hs.load(path, **options()) for path in tables.values()]
    summaries = [summary_of(each, np.arange(2)) for each in federations]
    schema = schema_of(federations[0])
    assert all(schema_of(each) == schema for each in federations)
    fitted = fit(schema, summaries)
    whole = hs.load(write(tmp_path / "all.csv", range(2, 10)), **options())
    dose = hs.Preprocessing.fit(whole, np.arange(8)).columns[0]
    assert fitted.columns[0].center == pytest.approx(dose.center, rel=1e-12)
    assert fitted.columns[0].scale == pytest.approx(dose.scale, rel=1e-9)
    ward = fitted.columns[1]
    assert ward.categories == ("north", "south") and ward.other and ward.indicator
    assert feature_schema(schema, fitted)["x"] == f"float32[{len(fitted.features)}]"


def test_a_node_of_few_rows_sends_no_sums_and_no_rare_label(tmp_path):
    few = hs.load(write(tmp_path / "few.csv", [1], rows=9), **options())
    with pytest.raises(hs.UserError, match="9 rows to train on, and sends no sums of fewer than 10"):
        summary_of(few, np.arange(1))
    some = hs.load(write(tmp_path / "some.csv", [1], rows=12), **options())
    labels = dict(summary_of(some, np.arange(1))["columns"][1]["labels"])
    assert all(rows >= LEAST_LABEL for rows in labels.values())


def test_a_run_on_tables_of_nodes_shows_no_row_to_anybody(tables, tmp_path):
    replies: list[Message] = []

    def kept(reply):
        replies.append(reply)
        return reply

    nodes = {
        number: Node(client_app(), {"data": str(path), "data-options": OPTIONS}, f"node-{number}", kept)
        for number, path in tables.items()
    }
    grid, events = InlineGrid(nodes), []
    serve(grid, PLAN, tmp_path / "run", config=ServerConfig(nodes=4), on_event=events.append)
    run = hs.open_run(tmp_path / "run")
    assert run.finished and not [event for event in events if event["event"] == "fault"]
    fitted = of_metadata(federation_document(tmp_path / "run" / "federation.json")["facts"])
    assert fitted is not None and fitted.columns[0].center == pytest.approx(5.05e4, rel=0.01)
    texts = [json.dumps(dict(record)) for m in (*grid.sent, *replies) for record in m.content.config_records.values()]
    cells = {line.split(",")[1] for path in tables.values() for line in path.read_text().splitlines()[1:]}
    assert not [cell for cell in cells for text in texts if cell in text]
    # A label that one node alone has is in no message of the server.
    assert not any("secret" in json.dumps(dict(r)) for m in grid.sent for r in m.content.config_records.values())
    most = max(
        array.numpy().size for m in replies for arrays in m.content.array_records.values() for array in arrays.values()
    )
    assert most <= 2 * len(fitted.features), "arrays of a reply are as large as the model's, not as the rows"
    # Repeated, it asks for no sums.
    again = InlineGrid(nodes)
    serve(again, PLAN, tmp_path / "run", config=ServerConfig(nodes=4), on_event=events.append)
    assert len(again.sent) == len(nodes)
