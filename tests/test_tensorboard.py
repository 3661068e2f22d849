"""TensorBoard events beside the log."""

from pathlib import Path

from headstart import run
from headstart.cli.tensorboard import also_events
from headstart.runs.log import read_records
from small import experiment, federation_file


def test_every_metric_of_the_log_is_an_event_and_the_listener_still_hears_all(tmp_path):
    heard = []
    with also_events(heard.append, tmp_path / "run") as on_event:
        assert run(experiment(federation_file(tmp_path / "data.npz")), tmp_path / "run", on_event=on_event).finished
    files = list(Path(tmp_path / "run/seed-0/events").iterdir())
    content = b"".join(path.read_bytes() for path in files)
    for name in ("training/accuracy", "training/loss", "validation/initial_accuracy", "validation/personalized_loss"):
        evaluations = sum(r["event"] == name.split("/")[0].replace("training", "round") for r in heard)
        expected = 6 if name.startswith("validation") else evaluations
        assert content.count(name.encode()) == expected, name
    records = read_records(tmp_path / "run/seed-0/metrics.jsonl")
    assert [r for r in heard if r["event"] in ("round", "evaluation")] == records
