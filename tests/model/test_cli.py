# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys

import pytest
import yaml

from avsmodel.cli import main

COMMANDS = [
    ["data", "synthesize"],
    ["data", "verify"],
    ["data", "describe"],
    ["tag"],
    ["train"],
    ["evaluate"],
    ["predict"],
    ["report"],
    ["info"],
    ["demo"],
]


def run_main(*arguments):
    return main([str(argument) for argument in arguments])


def test_the_module_runs_and_answers_help_without_loading_torch():
    code = (
        "import sys, runpy\n"
        "sys.argv = ['avsmodel', '--help']\n"
        "try:\n    runpy.run_module('avsmodel', run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 0 and 'torch' not in sys.modules\n"
        "else:\n    raise AssertionError\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert all(command[0] in result.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as end:
        run_main(*command, "--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"example:\n  avsmodel {' '.join(command)}" in text


def test_from_data_to_report(micro, tmp_path, capsys):
    data, run = tmp_path / "data", tmp_path / "run"
    synthesize = ("data", "synthesize", data, "--clips", 4, 2, 2, "--size", 64, "--easy", "-q")
    assert run_main(*synthesize) == 0
    assert run_main("data", "verify", data) == 0
    assert run_main("data", "describe", data) == 0
    assert "% of the clips keep their sources" in capsys.readouterr().out
    keys = (*micro, "train.epochs=1", f"data.root={data}")
    assert run_main("train", "tiny", *keys, "-o", run, "-q") == 0
    assert run_main("train", "-o", run, "--resume", "-q") == 0
    capsys.readouterr()

    scores = tmp_path / "scores.json"
    assert run_main("evaluate", run, "--shuffle-audio", "--output", scores, "-q") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads(scores.read_text())
    assert (shown["sound"], shown["clips"]) == ("shuffled", 2)
    assert run_main("evaluate", run, "--output", scores, "-q") == 2

    assert run_main("report", run, "--clips", 1) == 0
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert run_main("report", run, "--clips", 1) == 2
    capsys.readouterr()
    assert run_main("info", run) == 0
    assert "num_codewords" in capsys.readouterr().out


def test_predict_writes_its_files(run, make_video, tmp_path, capsys):
    video, out = make_video(seconds=1.0), tmp_path / "out"
    predict = ("predict", video, "-m", run.folder, "-o", out, "--device", "cpu", "-q")
    assert run_main(*predict) == 0
    assert f"wrote {out / 'overlay.mp4'}" in capsys.readouterr().out
    assert run_main(*predict) == 2
    assert run_main(*predict, "--overwrite", "--dense") == 0


def test_info_shows_presets_and_build(capsys):
    assert run_main("info") == 0
    assert "tiny" in capsys.readouterr().out
    assert run_main("info", "tiny") == 0
    assert yaml.safe_load(capsys.readouterr().out)["train"]["epochs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "tiny", "train.epoch=3", "-o", "{}/a"), "the nearest one is train.epochs"),
        (("train", "huge", "-o", "{}/a"), "expected a YAML file or one of"),
        (("train", "-o", "{}/a"), "expected a preset or a YAML file, got none"),
        (("train", "tiny", "data.root={}", "-o", "{}/a"), "got none"),
        (("evaluate", "{}/nowhere"), "expected config.yaml in"),
        (("predict", "{}/no.mp4", "-m", "{}", "-o", "{}/a"), "expected config.yaml in"),
        (("data", "verify", "{}"), "got none"),
        (("data", "describe", "{}"), "expected synthetic.json in"),
        (("tag", "model.dim=16", "-o", "{}/a"), "tag: expected a preset or a YAML file, got none"),
        (("info", "{}/nowhere"), "expected config.yaml in"),
    ],
)
def test_an_error_is_one_sentence_and_code_2(arguments, message, tmp_path, capsys):
    assert run_main(*(argument.format(tmp_path) for argument in arguments)) == 2
    text = capsys.readouterr().err
    assert text.startswith("avsmodel: error: ") and text.count("\n") == 1
    assert message in text
    assert not (tmp_path / "a").exists()


def test_traceback_is_there_for_who_asks(tmp_path):
    with pytest.raises(FileNotFoundError):
        run_main("--traceback", "info", tmp_path / "nowhere")
