"""What a person reads while a command runs: in a pipe, on a terminal, and with --quiet."""

import io
import logging
import re

import pytest
from rich.console import Console
from transformers.utils import logging as transformers_logging

from hf_deit.cli import main
from hf_deit.cli.console import TrainingConsole, messages
from hf_deit.distillation.teacher import Teacher
from hf_deit.recipes.durations import duration
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers import runs, tiny

EPOCHS = ("--num_train_epochs", 3, "--per_device_train_batch_size", 8, "--eval_strategy", "epoch")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.write_splits(tmp_path_factory.mktemp("console"))


def train(data, output_dir, *words):
    fields = ("--distillation_type", "none", "--student", "plain", *runs.STUDENT, *EPOCHS, "--use_cpu", *words)
    return main([*map(str, ("train", "--data", data, "--output_dir", output_dir, *fields))])


def test_a_pipe_gets_an_overview_one_line_per_evaluation_and_no_control_characters(tmp_path, capsys, data):
    assert train(data, tmp_path / "out") == 0
    streams = capsys.readouterr()
    lines = streams.err.replace("\n" + 11 * " ", " ").splitlines()  # long texts are wrapped
    assert not re.search(r"[\r\x1b]|\{'", streams.err)
    titles = {line.split(":")[0]: line.split(":", 1)[1].strip() for line in lines if ":" in line}
    assert "24 training images, 15 validation images, 3 classes" in titles["data"]
    assert titles["teacher"] == "none" and titles["learns"] == "labels"
    assert titles["steps"] == "9 of 8 images: 3 epochs of 3"
    assert str(tmp_path / "out") in titles["output"]
    assert len([line for line in lines if re.match(r"epoch \d: top-1 [\d.]+ %, loss [\d.]+", line)]) == 3
    assert len([line for line in lines if line.startswith("trained 9 steps in ")]) == 1
    assert "top-1 accuracy" in streams.out and "top-1 accuracy" not in streams.err


def test_the_accuracy_of_the_last_evaluation_is_that_of_the_table(tmp_path, capsys, data):
    train(data, tmp_path / "out")
    streams = capsys.readouterr()
    (last,) = re.findall(r"epoch 3: top-1 ([\d.]+) %", streams.err)
    (final,) = re.findall(r"top-1 accuracy +([\d.]+) %", streams.out)
    assert float(final) == pytest.approx(float(last), abs=0.051)


def test_quiet_leaves_only_the_results(tmp_path, capsys, data):
    assert train(data, tmp_path / "out", "--quiet") == 0
    streams = capsys.readouterr()
    assert streams.err == ""
    assert "top-1 accuracy" in streams.out and str(tmp_path / "out") in streams.out


def test_quiet_still_shows_warnings_and_errors(tmp_path, capsys, data):
    (data.parent / "dogs").mkdir()
    assert train(data.parent / "dogs", tmp_path / "out", "--quiet") == 2
    assert "dogs" in capsys.readouterr().err


def trainer_with_a_teacher(folder):
    return DistillationTrainer(
        tiny.student(),
        Teacher(tiny.conv_teacher(), tiny.MEAN, tiny.STD, id2label=dict(enumerate(tiny.NAMES))),
        tiny.arguments(folder, max_steps=4, logging_steps=1, eval_strategy="steps", eval_steps=2, disable_tqdm=False),
        train_dataset=tiny.training_data(),
        eval_dataset=tiny.evaluation_data(),
    )


def screen(width=200):
    return Console(file=io.StringIO(), force_terminal=True, width=width)


def plain(console):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())


def test_a_terminal_has_one_bar_with_the_losses_and_the_evaluations_above_it(tmp_path):
    console = screen()
    with TrainingConsole(console, title="student") as shown:
        trainer = trainer_with_a_teacher(tmp_path)
        shown.attach(trainer)
        trainer.train()
    text = plain(console)
    assert "student" in text and "4/4" in text
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert f"loss {logged[-1]['loss']:.3g}" in text and f"teacher {logged[-1]['distillation_loss']:.3g}" in text
    evaluations = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert [float(figure) for figure in re.findall(r"epoch [\d.]+: top-1 ([\d.]+) %", text)] == pytest.approx(
        [100 * accuracy for accuracy in evaluations], abs=0.051
    )
    assert "{'" not in text


def test_the_bar_fits_on_one_line_of_a_narrow_terminal(tmp_path):
    console = screen(width=80)
    with TrainingConsole(console) as shown:
        trainer = trainer_with_a_teacher(tmp_path)
        shown.attach(trainer)
        trainer.train()
    bars = [line for line in plain(console).splitlines() if "/4" in line]
    assert bars and all("images/s" in line or "loss" not in line for line in bars)


def test_the_bar_is_removed_after_an_error():
    console = screen()
    with pytest.raises(RuntimeError), TrainingConsole(console) as shown:
        shown.progress = shown._bar("training", total=4, completed=0)
        raise RuntimeError
    assert shown.progress is None
    assert "\x1b[?25h" in console.file.getvalue()  # the cursor is visible again


def test_messages_are_printed_above_the_bar_and_the_handlers_are_restored(capsys):
    before = list(logging.getLogger().handlers)
    bars = transformers_logging.is_progress_bar_enabled()
    with messages() as console:
        assert not transformers_logging.is_progress_bar_enabled()
        logging.getLogger("hf_deit.test").warning("a [bold] word :smile: 100 %")
        transformers_logging.get_logger("transformers.modeling_utils").warning("a note of transformers")
        transformers_logging.get_logger("transformers.modeling_utils").warning("mtime may not be reliable here")
    assert console.stderr
    assert capsys.readouterr().err.splitlines() == ["a [bold] word :smile: 100 %", "a note of transformers"]
    assert logging.getLogger().handlers == before
    assert transformers_logging.is_progress_bar_enabled() == bars


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (720, "12 min"), (11_100, "3 h 05 min")]
)
def test_a_duration_is_short(seconds, text):
    assert duration(seconds) == text
