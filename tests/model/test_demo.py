# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from avsmodel.demo import demo


@pytest.mark.slow
def test_the_demo_runs_twice_into_the_same_folder(micro, throughput, tmp_path):
    settings = (*micro, "train.epochs=1")
    path = tmp_path / "throughput.json"
    path.write_text(json.dumps(throughput))
    said = []
    for _ in range(2):
        metrics = demo(
            tmp_path,
            clips=(4, 2, 2),
            examples=64,
            overrides=settings,
            throughput=path,
            say=said.append,
        )
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert set(metrics) == {"J", "F", "JF", "J_shuffled_audio", "train_seconds", "clips"}
    assert all(0 <= metrics[name] <= 1 for name in ("J", "F", "JF", "J_shuffled_audio"))
    assert metrics["clips"] == 2
    assert "vector_quantize" in (tmp_path / "report.html").read_text()
    assert [line.split()[0] for line in said[:3]] == ["J", "F", "J&F"]
    assert path.exists()
