# SPDX-License-Identifier: Apache-2.0
import math
import re
from xml.etree import ElementTree

from avsmodel.chart import Line, bar_chart, line_chart, smooth


def parse(html):
    return ElementTree.fromstring(f"<div>{html}</div>")


def test_a_line_passes_through_its_points():
    chart = parse(line_chart([Line("a", [0, 1, 2], [0.0, 1.0, 0.5])], "step", (0.0, 1.0)))
    points = chart.find(".//polyline").get("points").split()
    x, y = zip(*(map(float, point.split(",")) for point in points), strict=True)
    assert x[1] - x[0] == x[2] - x[1] > 0
    assert math.isclose(y[2], (y[0] + y[1]) / 2) and y[1] < y[0]
    assert chart.find(".//circle/title").text == "a at 0: 0"


def test_names_are_escaped_and_values_that_are_not_finite_left_out():
    lines = [Line("J&F <b>", [1, 2, 3], [0.2, math.nan, 0.4]), Line("J", [1], [math.inf])]
    chart = parse(line_chart(lines, "step"))
    assert len(chart.find(".//polyline").get("points").split()) == 2
    assert "J&F <b>" in "".join(chart.itertext())


def test_charts_of_little_do_not_fail():
    assert "No values" in line_chart([Line("a", [], [])], "step")
    alone = parse(line_chart([Line("a", [300], [0.0])], "step"))
    assert {"0", "100", "300"} <= {text.text for text in alone.iter("text")}
    parse(bar_chart([0, 0], "times"))
    parse(bar_chart([5], "times"))


def test_ticks_are_round_numbers():
    chart = parse(line_chart([Line("a", [0, 970], [0.0, 0.73])], "step"))
    labels = [text.text for text in chart.iter("text")]
    assert {"0", "0.2", "0.4", "0.6", "200", "400", "800"} <= set(labels)


def test_bars_are_as_high_as_their_values():
    chart = parse(bar_chart([1, 0, 4], "times"))
    heights = [float(bar.get("height")) for bar in chart.iter("rect")]
    assert math.isclose(heights[1], 4 * heights[0])
    assert re.fullmatch("2: 4 times", chart.findall(".//rect/title")[1].text)


def test_smooth_is_the_running_mean():
    assert smooth([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
