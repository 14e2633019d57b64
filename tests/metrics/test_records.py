"""Records: JSON, differences, and what forbids a comparison."""

import json
import math

import pytest

from vavae.metrics import MeasurementProtocol, MetricRecord

RECORD = MetricRecord(
    "frechet_distance",
    12.5,
    MeasurementProtocol(
        samples=5000,
        label_protocol="balanced",
        solver="euler",
        steps=250,
        shift=0.3,
        guidance_scale=6.7,
        guidance_interval=(0.125, 1.0),
        guidance_channels=3,
        seed=0,
        dtype="bfloat16",
        feature_network="inception",
        feature_network_hash="ab12",
    ),
    higher_is_better=False,
    versions={"torch": "2.13.0"},
)


@pytest.mark.parametrize("value", [12.5, 1e-30, math.inf, -math.inf])
def test_json_round_trip(value):
    record = MetricRecord(**RECORD.__dict__ | {"value": value})
    text = json.dumps(record.to_dict(), allow_nan=False)
    assert MetricRecord.from_dict(json.loads(text)) == record


def test_not_a_number_is_kept():
    record = MetricRecord("psnr", math.nan, MeasurementProtocol(samples=1), unit="dB")
    assert math.isnan(MetricRecord.from_dict(json.loads(json.dumps(record.to_dict(), allow_nan=False))).value)


def test_fields_that_are_none_are_left_out():
    assert MetricRecord("psnr", 30.0, MeasurementProtocol(samples=10), unit="dB").to_dict()["protocol"] == {
        "samples": 10
    }


def test_unknown_fields_are_refused():
    plain = RECORD.to_dict()
    plain["protocol"]["stepz"] = 3
    with pytest.raises(TypeError, match="stepz"):
        MetricRecord.from_dict(plain)


def test_differing_fields_are_obstacles():
    other = MetricRecord(
        "frechet_distance", 11.0, MeasurementProtocol(**RECORD.protocol.__dict__ | {"samples": 50_000, "steps": 50})
    )
    assert RECORD.obstacles(other) == ["samples", "steps"]
    assert RECORD.obstacles(RECORD) == []


def test_intervals_survive_json():
    record = MetricRecord(**RECORD.__dict__ | {"interval": (12.0, 13.0)})
    assert MetricRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert "interval" not in RECORD.to_dict()


def test_obstacles_exclude_the_compared_model():
    def changed(**fields):
        return MetricRecord("frechet_distance", 11.0, MeasurementProtocol(**RECORD.protocol.__dict__ | fields))

    assert RECORD.obstacles(changed(checkpoint="b", checkpoint_hash="c")) == []
    assert RECORD.obstacles(changed(label_protocol="random", samples=10)) == ["samples", "label_protocol"]
    # A network of equal hash is the same network under another name; without a hash the name decides.
    assert RECORD.obstacles(changed(feature_network="a file")) == []
    assert RECORD.obstacles(changed(feature_network_hash="cd34")) == ["feature_network_hash"]
    bare = changed(feature_network_hash=None)
    assert bare.obstacles(changed(feature_network_hash=None, feature_network="other")) == ["feature_network"]
    assert RECORD.obstacles(changed(reference="x")) == ["reference"]


def test_size_of_rectangles_has_two_numbers():
    square, wide = (
        MetricRecord("psnr", 30.0, MeasurementProtocol(samples=10, image_size=size), unit="dB")
        for size in (24, (24, 40))
    )
    assert [r.to_dict()["protocol"]["image_size"] for r in (square, wide)] == [24, [24, 40]]
    again = MetricRecord.from_dict(json.loads(json.dumps(wide.to_dict())))
    assert again == wide and again.obstacles(wide) == [] and again.obstacles(square) == ["image_size"]
