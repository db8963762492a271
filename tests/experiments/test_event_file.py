"""The event files that mnist.py --tensorboard writes, read back."""

import contextlib
import importlib.util
import io
import struct

import mnist
import numpy as np
import options
import pytest
import study_options
import train
from errors import OptionError
from event_file import EventFile, write_study
from PIL import Image

from jaxrnn.training.run import Run

RECORDS = [
    {"step": 10, "loss": 0.5, "validation_accuracy": None, "seconds": 2.0},
    {"step": 20, "loss": 0.25, "validation_accuracy": 0.75, "seconds": 5.0},
]


def events(folder):
    """The events of the one event file in a folder, which is in the format of TFRecord."""
    from tensorboardX.proto.event_pb2 import Event

    [path] = folder.glob("events.out.tfevents.*")
    file, found = io.BytesIO(path.read_bytes()), []
    while head := file.read(12):  # the size and its checksum
        (size,) = struct.unpack("<Q", head[:8])
        found.append(Event.FromString(file.read(size)))
        file.read(4)  # the checksum of the event
    return found


def values(folder):
    return [(event, value) for event in events(folder) for value in event.summary.value]


def scalars(folder):
    """The value at each step, by tag; a step that is there twice fails."""
    found = {}
    for event, value in values(folder):
        if value.HasField("simple_value"):
            series = found.setdefault(value.tag, {})
            assert event.step not in series, (value.tag, event.step)
            series[event.step] = value.simple_value
    return found


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("tensorboardX")
    for name, color in (("confusion", "red"), ("beliefs", "blue")):
        Image.new("RGB", (3, 2), color).save(tmp_path / f"{name}.png")
    return tmp_path


def test_scalars_and_pictures_are_read_back(folder):
    (folder / "events.out.tfevents.1.host").touch()
    with contextlib.closing(EventFile(folder, RECORDS[:1])) as file:
        file.add(RECORDS[1])
        file.add_pictures(15)
    assert scalars(folder) == {
        "loss": {10: 0.5, 20: 0.25},
        "validation_accuracy": {20: 0.75},
        "seconds": {10: 2.0, 20: 5.0},
    }
    times = {event.step: event.wall_time for event, value in values(folder) if value.tag == "loss"}
    assert times[20] - times[10] == pytest.approx(3)
    pictures = {
        value.tag: (event.step, Image.open(io.BytesIO(value.image.encoded_image_string)))
        for event, value in values(folder)
        if value.HasField("image")
    }
    assert {name: step for name, (step, _) in pictures.items()} == {"confusion": 15, "beliefs": 15}
    np.testing.assert_array_equal(pictures["beliefs"][1], np.full((2, 3, 3), [0, 0, 255]))


def test_a_finished_run_gets_an_event_file(folder, monkeypatch):
    config = options.Config(dataset="digits", steps=20, out=folder, tensorboard=True)
    run = Run(folder)
    for record in RECORDS:
        run.append_metrics(record)
    # The run is opened and reported elsewhere.
    monkeypatch.setattr(Run, "check", lambda *_: None)
    monkeypatch.setattr(Run, "result", lambda *_: {"selected_step": 20})
    monkeypatch.setattr(train, "conclude", lambda *_: None)
    assert mnist.main(config) == 0
    assert list(scalars(folder)["loss"]) == [10, 20]
    assert [value.tag for _, value in values(folder)][-2:] == ["confusion", "beliefs"]


def test_the_runs_of_a_study_are_side_by_side(folder):
    curve = [{"step": 5, "loss": None, "test_accuracy": 0.5}, {"step": 9, "test_accuracy": 0.75}]
    runs = [{"setting": "cell=a/b.py:c", "seed": seed, "curve": curve} for seed in (0, 1)]
    events = folder / "events"
    write_study([{"setting": "earlier", "seed": 0, "curve": curve}], events)
    write_study(runs, events)
    found = {path.parent.relative_to(events).as_posix() for path in events.rglob("events.out.*")}
    assert found == {"cell=a_b.py:c/seed-0", "cell=a_b.py:c/seed-1"}
    assert scalars(events / "cell=a_b.py:c" / "seed-1") == {"test_accuracy": {5: 0.5, 9: 0.75}}


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorboardX" else find(name)
    )
    for config in (options.Config, study_options.Config):
        with pytest.raises(OptionError, match=r"X: pip install 'jaxrnn\[tensorboard\]'$"):
            config(tensorboard=True).check()
