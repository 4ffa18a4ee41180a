# SPDX-License-Identifier: Apache-2.0
import base64
import io
import re
from html.parser import HTMLParser

import av
import numpy as np
import pytest
from PIL import Image

import avsmodel
from avsmodel.config import EvaluateConfig
from avsmodel.evaluate import evaluate, open_split
from avsmodel.report import write_report

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects the elements of a page and checks that each is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.text = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def report(run, throughput, tmp_path_factory):
    model = avsmodel.load(run.folder, "cpu")
    dataset = open_split(model.config.data, "test")
    results = [
        evaluate(model, dataset, EvaluateConfig(), sound=sound, progress=False)
        for sound in ("own", "shuffled")
    ]
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(
        model, dataset, path, run=run.folder, results=results, throughput=throughput, clips=2
    )
    return path.read_text(), results, model.config.model.num_tokens


def test_the_page_is_one_file_without_scripts(report):
    text = report[0]
    page = Page(text)
    assert not page.all("script") and not page.all("link")
    sources = [attributes["src"] for _, attributes in page.found if "src" in attributes]
    assert sources and all(source.startswith("data:") for source in sources)
    assert not re.search(r"https?://|url\(", text)
    assert "prefers-color-scheme: dark" in text


def test_the_page_shows_numbers_curves_and_tables(report):
    text, results, _ = report
    page = Page(text)
    words = "".join(page.text)
    assert f"{100 * results[0]['metrics']['J']:.2f}" in words
    assert "protocol avsbench, 64x64 pixels, test batch 1" in words
    assert "vector_quantize" in words and "4.0 x" in words
    assert "train:" in words  # the configuration
    assert "codewords in use on 4 clips" in words
    assert len(page.all("polyline")) >= 5
    for heading in ("Training", "Use of the codebook", "What each token sees", "Results"):
        assert heading in words


def test_pictures_and_sounds_are_real(report):
    text, _, tokens = report
    page = Page(text)
    pictures = [attributes["src"] for attributes in page.all("img")]
    # Two clips of five seconds in six rows, and the tokens of the first clip.
    assert len(pictures) == 2 * 5 * 6 + 5 * tokens
    for source in pictures[:6]:
        image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert min(image.size) >= 32 and np.array(image).std() > 0
    sounds = [attributes["src"] for attributes in page.all("audio")]
    assert len(sounds) == 4
    with av.open(io.BytesIO(base64.b64decode(sounds[0].partition(",")[2]))) as sound:
        samples = sum(frame.samples for frame in sound.decode(audio=0))
    assert abs(samples - 5 * 16000) < 4000


def test_a_page_without_training_evaluation_or_measurements(semantic_run, tmp_path):
    model = avsmodel.load(semantic_run.folder, "cpu")
    write_report(model, open_split(model.config.data, "test"), tmp_path / "page.html", clips=1)
    words = "".join(Page((tmp_path / "page.html").read_text()).text)
    for phrase in ("No training log", "Not evaluated", "Not measured"):
        assert phrase in words
