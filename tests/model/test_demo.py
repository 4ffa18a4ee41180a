import json

import pytest

from avsmodel.demo import demo


@pytest.mark.slow
def test_the_demo_runs_twice_into_the_same_folder(micro, tmp_path):
    settings = (*micro, "train.epochs=1")
    rows = [
        {
            "operator": "vector_quantize",
            "case": "M 100",
            "eager_ms": 0.4,
            "avskernels_ms": 0.1,
            "speedup": 4.0,
            "threads": 2,
        }
    ]
    throughput = tmp_path / "throughput.json"
    throughput.write_text(json.dumps(rows))
    said = []
    for _ in range(2):
        metrics = demo(
            tmp_path, clips=(4, 2, 2), overrides=settings, throughput=throughput, say=said.append
        )
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert set(metrics) == {"J", "F", "JF", "J_shuffled_audio", "train_seconds", "clips"}
    assert all(0 <= metrics[name] <= 1 for name in ("J", "F", "JF", "J_shuffled_audio"))
    assert metrics["clips"] == 2
    assert "vector_quantize" in (tmp_path / "report.html").read_text()
    assert [line.split()[0] for line in said[:3]] == ["J", "F", "J&F"]
    assert throughput.exists()
