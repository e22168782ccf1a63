"""The files that are uploaded to the Hub, with the real huggingface_hub and a server in a thread (helpers/hub.py)."""

import hashlib
import json
import os
import pickletools
import re
import subprocess
import sys

import huggingface_hub._commit_api
import huggingface_hub.constants
import huggingface_hub.lfs
import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from transformers import AutoModelForImageClassification, ResNetConfig

from hf_deit.cli import main
from hf_deit.errors import PublishError
from hf_deit.hub import publishing
from hf_deit.hub.model_card import MARKER
from hf_deit.hub.publishing import check_names, published_files, push
from hf_deit.models.image_processing_deit import DeiTImageProcessor
from hf_deit.trainer import hub_mixin
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers import tiny
from tests.helpers.hub import Hub

TOKEN = "hf_" + "a1B2" * 8
PUBLISHED = {
    *("README.md", "config.json", "model.safetensors", "preprocessor_config.json"),
    *("recipe.yaml", "results.json", "training_log.json"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the folder of a trained model, with a checkpoint and with files that must never be uploaded."""
    folder = tmp_path_factory.mktemp("secret-user") / "student"
    arguments = tiny.arguments(
        folder,
        distillation_type="hard",
        save_strategy="steps",
        save_steps=2,
        hub_token=TOKEN,
        hub_model_id="me/student",
    )
    trainer = DistillationTrainer(
        tiny.student(),
        tiny.conv_teacher(),
        arguments,
        train_dataset=tiny.training_data(16),
        eval_dataset=tiny.evaluation_data(6),
    )
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card(license="mit")
    (folder / "recipe.yaml").write_text(f"data: {folder.parent}/photos\nteacher: {folder.parent}/best\n")
    (folder / "training_log.json").write_text(json.dumps(trainer.state.log_history))
    torch.save(trainer.args, folder / "training_args.bin")
    torch.save({}, folder / "optimizer.pt")
    torch.save(tiny.conv_teacher().state_dict(), folder / "teacher.pth")
    (folder / "notes.txt").write_text(TOKEN)
    return folder


@pytest.fixture
def hub(monkeypatch):
    server = Hub(TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    # A failure is raised at once, instead of after five retries.
    for module in (huggingface_hub.lfs, huggingface_hub._commit_api):
        monkeypatch.setattr(module, "http_backoff", once(module.http_backoff))
    yield server
    server.close()


def once(http_backoff):
    return lambda *arguments, **options: http_backoff(*arguments, **{**options, "max_retries": 0})


def api(hub, token=TOKEN):
    return HfApi(endpoint=hub.endpoint, token=token)


def state_of(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_a_push_uploads_the_listed_files_and_no_others(hub, saved):
    before = state_of(saved)
    files, address = push(saved, "me/student", api=api(hub))
    uploaded = hub.files("me/student")
    assert set(uploaded) == PUBLISHED == {file.path_in_repo for file in files}
    assert {file.path_in_repo: file.upload_info.size for file in files} == {
        name: len(content) for name, content in uploaded.items()
    }
    assert uploaded["model.safetensors"] == (saved / "model.safetensors").read_bytes()
    assert address.startswith(f"{hub.endpoint}/me/student/commit/")
    assert state_of(saved) == before


def test_no_request_contains_the_token_a_pickle_or_a_path_of_the_author(hub, saved):
    push(saved, "me/student", api=api(hub))
    assert len(hub.received) > 5
    for method, path, body in hub.received:
        assert TOKEN.encode() not in body, (method, path)
        assert b"secret-user" not in body
    for name, content in hub.files("me/student").items():
        assert TOKEN.encode() not in content and b"secret-user" not in content, name
        assert not content.startswith((b"PK", b"\x80")), name  # a zip file of torch.save, or a pickle
        with pytest.raises(ValueError):
            list(pickletools.genops(content))


def test_a_pushed_model_loads_in_another_process_without_this_package(hub, saved, tmp_path):
    push(saved, "me/student", api=api(hub))
    pixels = torch.rand(2, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(0))
    torch.save(pixels, tmp_path / "pixels.pt")
    program = (
        "import sys; sys.modules['hf_deit'] = None\n"
        "import torch\nfrom transformers import AutoModelForImageClassification, pipeline\nfrom PIL import Image\n"
        "model = AutoModelForImageClassification.from_pretrained('me/student').eval()\n"
        "predictions = pipeline('image-classification', model='me/student')(Image.new('RGB', (20, 30)))\n"
        "assert {row['label'] for row in predictions} == {'ant', 'bee', 'cat', 'dog'}, predictions\n"
        f"with torch.no_grad(): torch.save(model(torch.load({str(tmp_path / 'pixels.pt')!r})).logits, {str(tmp_path / 'logits.pt')!r})\n"
    )
    places = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.endswith("OFFLINE")} | places
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = AutoModelForImageClassification.from_pretrained(saved).eval()
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), model(pixels).logits)


def test_the_uploaded_card_loads_the_model_by_its_name_on_the_hub(hub, saved):
    push(saved, "me/student", api=api(hub))
    card = ModelCard(hub.files("me/student")["README.md"].decode())
    assert 'pipeline("image-classification", model="me/student")' in card.text
    assert (card.data.license, card.data.pipeline_tag) == ("mit", "image-classification")
    assert 'model="."' in (saved / "README.md").read_text()  # the local card is not changed


def test_a_card_written_by_hand_is_uploaded_unchanged(saved, tmp_path):
    copy = copied(saved, tmp_path)
    (copy / "README.md").write_text("# mine\n")
    assert {file.path_in_repo: file.path_or_fileobj for file in published_files(copy, "me/x")}[
        "README.md"
    ] == b"# mine\n"


def test_a_private_repository_a_branch_and_a_tag_are_created(hub, saved):
    push(saved, "me/student", private=True, branch="trial/one", tag="v1.0", api=api(hub))
    repo = hub.repos["me/student"]
    assert repo["private"] and set(repo["branches"]["trial/one"]) == PUBLISHED and repo["branches"]["main"] == {}
    assert set(repo["tags"]) == {"v1.0"} and len(repo["tags"]["v1.0"]) == 40


def test_a_private_push_to_a_public_repository_is_refused_before_a_file_is_uploaded(hub, saved):
    api(hub).create_repo("me/student")
    with pytest.raises(PublishError, match="me/student .*public.*--private"):
        push(saved, "me/student", private=True, api=api(hub))
    assert hub.files("me/student") == {}


def test_a_dry_run_lists_the_files_and_sends_nothing(hub, saved, capsys, monkeypatch):
    monkeypatch.setattr(publishing, "HfApi", lambda: api(hub))
    assert main(["push", str(saved), "me/student", "--private", "--tag", "v1", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert hub.received == []
    for name in PUBLISHED:
        assert name in shown
    assert f"{(saved / 'model.safetensors').stat().st_size:,}" in shown and "notes.txt" not in shown
    assert main(["push", str(saved), "me/student"]) == 0
    assert f"{hub.endpoint}/me/student/commit/" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("failing_request", "failure", "named"),
    [
        ("POST /api/repos/create", 403, "write access"),
        ("POST /api/models/me/student/preupload", 404, "owner and name"),
        ("PUT /lfs/", 500, r"\(500\)"),
        ("PUT /lfs/", "drop", "connection"),
        ("POST /api/models/me/student/commit", 500, r"\(500\)"),
        ("POST /api/models/me/student/commit", "drop", "connection"),
    ],
)
def test_a_failure_is_explained_and_changes_no_file_and_the_push_can_be_repeated(
    hub, saved, failing_request, failure, named
):
    before = state_of(saved)
    hub.failures[failing_request] = failure
    with pytest.raises(PublishError, match=named) as raised:
        push(saved, "me/student", api=api(hub))
    assert "me/student" in str(raised.value) and TOKEN not in str(raised.value)
    assert state_of(saved) == before
    assert not hub.repos.get("me/student") or hub.files("me/student") == {}
    hub.failures.clear()
    push(saved, "me/student", api=api(hub))
    assert set(hub.files("me/student")) == PUBLISHED


def test_the_error_of_a_wrong_token_does_not_contain_the_token(hub, saved):
    wrong = "hf_" + "Zz9Y" * 8
    with pytest.raises(PublishError, match="hf auth login") as raised:
        push(saved, "me/student", api=api(hub, wrong))
    assert wrong not in str(raised.value) and hub.repos == {}


def test_an_existing_tag_is_refused_before_a_file_is_uploaded(hub, saved):
    push(saved, "me/student", tag="v1", api=api(hub))
    sent = len([path for method, path, _ in hub.received if method in ("POST", "PUT") and "/create" not in path])
    with pytest.raises(PublishError, match="me/student .*'v1'"):
        push(saved, "me/student", tag="v1", branch="other", api=api(hub))
    assert sent == len(
        [path for method, path, _ in hub.received if method in ("POST", "PUT") and "/create" not in path]
    )
    assert set(hub.repos["me/student"]["branches"]) == {"main"}
    push(saved, "me/student", tag="v2", api=api(hub))
    assert set(hub.repos["me/student"]["tags"]) == {"v1", "v2"}


@pytest.mark.parametrize("repo", ["a/b/c", "../up", "me/na me", "me/x--y", "-me/x", "me/x.git", "me/", "", "é/x"])
def test_an_invalid_repository_name_is_refused_before_anything_is_read(repo, tmp_path):
    with pytest.raises(PublishError, match="owner/name"):
        push(tmp_path / "nowhere", repo)


@pytest.mark.parametrize("name", ["-x", "a..b", "a b", "x.lock", "a//b", "/a", "refs~1", "", "a/"])
def test_an_invalid_branch_or_tag_is_refused(name):
    for place in ("branch", "tag"):
        with pytest.raises(PublishError, match=f"{re.escape(repr(name))}.*{place}"):
            check_names("me/x", **{place: name})
    check_names("me/x", "feature/one", "v1.0")


# ---- what cannot be published ----


def copied(saved, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in PUBLISHED:
        (copy / name).write_bytes((saved / name).read_bytes())
    return copy


def test_unfolded_layer_scale_is_refused_and_a_folded_model_is_not(tmp_path):
    model = tiny.student(layer_scale_init_value=0.1)
    processor = DeiTImageProcessor.for_image_size((tiny.SIZE, tiny.SIZE))
    processor.save_pretrained(tmp_path / "raw")
    processor.save_pretrained(tmp_path / "folded")
    model.save_pretrained(tmp_path / "raw")
    with pytest.raises(PublishError, match="fold_layer_scale=True"):
        published_files(tmp_path / "raw", "me/x")
    model.save_pretrained(tmp_path / "folded", fold_layer_scale=True)
    assert {file.path_in_repo for file in published_files(tmp_path / "folded", "me/x")} == {
        *("README.md", "config.json", "model.safetensors", "preprocessor_config.json")
    }


def test_pickled_or_damaged_weights_are_refused(saved, tmp_path):
    copy = copied(saved, tmp_path)
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(PublishError, match=r"model\.safetensors is broken"):
        published_files(copy, "me/x")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(PublishError, match=r"model\.safetensors.*\.bin"):
        published_files(copy, "me/x")


def test_all_shards_are_uploaded_and_an_index_that_names_a_file_outside_the_folder_is_refused(tmp_path):
    tiny.student().save_pretrained(tmp_path, max_shard_size="20KB")
    DeiTImageProcessor.for_image_size((tiny.SIZE, tiny.SIZE)).save_pretrained(tmp_path)
    shards = {path.name for path in tmp_path.glob("*.safetensors")}
    assert len(shards) > 1
    assert {file.path_in_repo for file in published_files(tmp_path, "me/x")} == {
        *("README.md", "config.json", "model.safetensors.index.json", "preprocessor_config.json"),
        *shards,
    }
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(sorted(shards)[0], "../../secret.safetensors"))
    with pytest.raises(PublishError, match=r"\.\./\.\./secret\.safetensors"):
        published_files(tmp_path, "me/x")


def test_a_folder_without_image_processor_and_a_file_are_refused_with_a_way_to_fix_it(saved, tmp_path, capsys):
    copy = copied(saved, tmp_path)
    (copy / "preprocessor_config.json").unlink()
    assert main(["push", str(copy), "me/x", "--dry-run"]) == 2
    assert "processor.save_pretrained(" in capsys.readouterr().err
    assert main(["push", str(copy / "model.safetensors"), "me/x", "--dry-run"]) == 2
    message = capsys.readouterr().err
    assert str(copy / "model.safetensors") in message and "hf-deit convert" in message and "card" not in message


def test_a_student_without_image_processor_is_refused_before_a_repository_is_created(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: HfApi(endpoint=hub.endpoint))
    arguments = tiny.arguments(tmp_path, distillation_type="none", push_to_hub=True, hub_token=TOKEN)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=4)
    data = {"train_dataset": tiny.training_data(16)}
    with pytest.raises(ValueError, match="without an image processor"):
        DistillationTrainer(AutoModelForImageClassification.from_config(config), None, arguments, **data)
    assert hub.received == []


def test_an_image_processor_of_an_earlier_version_is_published_for_every_version(saved, tmp_path):
    copy = copied(saved, tmp_path)
    file = copy / "preprocessor_config.json"
    today = json.loads(file.read_text())
    old = {name: value for name, value in today.items() if name != "hf_deit_image_processor"}
    file.write_text(json.dumps(old | {"image_processor_type": "DeiTImageProcessor"}))
    before = file.read_bytes()
    (published,) = (part for part in published_files(copy, "me/x") if part.path_in_repo == file.name)
    assert json.loads(published.path_or_fileobj) == today and today["image_processor_type"] == "BitImageProcessor"
    assert file.read_bytes() == before
    file.write_text("[1]")
    with pytest.raises(PublishError, match=r"preprocessor_config\.json"):
        published_files(copy, "me/x")


def test_a_token_in_a_card_written_by_hand_is_refused(saved, tmp_path):
    copy = copied(saved, tmp_path)
    (copy / "README.md").write_text(f"# mine\nlogin with {TOKEN}\n")
    with pytest.raises(PublishError, match=r"README\.md .*token") as raised:
        published_files(copy, "me/x")
    assert TOKEN not in str(raised.value)


# ---- the Trainer ----


def pushing_trainer(hub, folder, monkeypatch, **changes):
    monkeypatch.setattr(hub_mixin, "HfApi", lambda: HfApi(endpoint=hub.endpoint))
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: HfApi(endpoint=hub.endpoint))
    arguments = tiny.arguments(
        folder, distillation_type="hard", push_to_hub=True, hub_model_id="me/student", hub_token=TOKEN, **changes
    )
    data = {"train_dataset": tiny.training_data(16), "eval_dataset": tiny.evaluation_data(6)}
    processor = DeiTImageProcessor.for_image_size((tiny.SIZE, tiny.SIZE))
    return DistillationTrainer(tiny.student(), tiny.conv_teacher(), arguments, processing_class=processor, **data)


def test_the_trainer_pushes_the_same_files_at_every_save_and_at_the_end(hub, tmp_path, monkeypatch):
    trainer = pushing_trainer(hub, tmp_path, monkeypatch, save_strategy="steps", save_steps=1)
    trainer.train()
    commits = [path for _, path, _ in hub.received if "/commit/" in path]
    assert len(commits) == 2  # one commit per save
    trainer.evaluate()
    (tmp_path / "optimizer.pt").write_bytes(b"\x80never")
    trainer.push_to_hub(license="mit")
    uploaded = hub.files("me/student")
    assert set(uploaded) == PUBLISHED
    card = ModelCard(uploaded["README.md"].decode())
    assert card.data.license == "mit" and 'model="me/student"' in card.text
    measured = {entry.metric_name: entry.metric_value for entry in card.data.eval_results}
    assert measured["top-1 accuracy, prediction"] == trainer.state.log_history[-1]["eval_accuracy"]
    for _, path, body in hub.received:
        assert TOKEN.encode() not in body and str(tmp_path).encode() not in body, path


def test_a_push_that_fails_during_training_is_logged_and_training_continues(hub, tmp_path, monkeypatch, caplog):
    trainer = pushing_trainer(hub, tmp_path, monkeypatch, save_strategy="steps", save_steps=1)
    hub.failures["POST /api/models/me/student/commit"] = 500
    trainer.train()
    assert trainer.state.global_step == 2
    assert "training continues" in caplog.text
    assert hub.files("me/student") == {} and (tmp_path / "model.safetensors").is_file()
    assert MARKER in (tmp_path / "README.md").read_text()


def test_a_wrong_token_is_an_error_before_the_first_step(hub, tmp_path, monkeypatch):
    hub.token = "another"
    with pytest.raises(PublishError, match="token for me/student"):
        pushing_trainer(hub, tmp_path, monkeypatch)


def test_a_run_of_the_command_line_is_pushed_with_its_results(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_mixin, "HfApi", lambda: api(hub))
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: api(hub))
    for number, pixels in enumerate(tiny.pixels_of(24)):
        path = tmp_path / "photos" / ("train", "validation")[number % 3 == 0] / tiny.NAMES[number % 4] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    shape = ("--hidden_size", "32", "--num_hidden_layers", "2", "--num_attention_heads", "2", "--patch_size", "8")
    steps = ("--max_steps", "1", "--per_device_train_batch_size", "4", "--image_size", "16", "--save_strategy", "no")
    quiet = (
        "--use_cpu",
        "--report",
        "false",
        "--report_to",
        "none",
        "--disable_tqdm",
        "true",
        "--distillation_type",
        "none",
    )
    places = ("--data", str(tmp_path / "photos"), "--output_dir", str(tmp_path / "out"))
    hubs = ("--push_to_hub", "--hub_model_id", "me/insects", "--hub_token", TOKEN)
    assert main(["train", *places, *shape, *steps, *quiet, *hubs]) == 0
    uploaded = hub.files("me/insects")
    assert set(uploaded) == PUBLISHED
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert json.loads(uploaded["results.json"]) == results
    card = uploaded["README.md"].decode()
    assert f"{results['train_runtime']:,.0f} s" in card and "| validation images | 8 |" in card
    assert yaml.safe_load(uploaded["recipe.yaml"])["data"] == "./photos"
    for _, path, body in hub.received:
        assert TOKEN.encode() not in body and str(tmp_path).encode() not in body, path
    assert len([path for _, path, _ in hub.received if "/commit/" in path]) == 1
