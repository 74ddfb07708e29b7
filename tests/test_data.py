"""Data: what comes out has the stated shape, range and counts, and damage of any kind is named before use."""

import gzip
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from course_lib import data, files
from course_lib.text import split

COURSE = data.ROOT
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A copy of the course's Fashion-MNIST, which a test may damage."""
    (tmp_path / "data").mkdir()
    for name in ("checksums.json", "fashion_mnist.npz"):
        shutil.copy(data.ROOT / "data" / name, tmp_path / "data")
    monkeypatch.setattr(data, "ROOT", tmp_path)
    return tmp_path


# --- Fashion-MNIST --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("split", "per_class"), [("train", 3000), ("test", 1000)])
def test_fashion_mnist_has_the_stated_shape_range_and_counts(split, per_class):
    images, labels = data.fashion_mnist(split)
    assert images.shape == (10 * per_class, 1, 28, 28) and images.dtype == torch.float32
    assert labels.shape == (10 * per_class,) and labels.dtype == torch.int64
    assert images.min() == -1 and images.max() == 1
    assert labels.bincount().tolist() == [per_class] * len(data.CLASSES)


SUMS = {  # SHA-256 of the bytes of pictures and labels: of the kept part of the training set, and the authors' of the test set
    "train": ("9f883c31ff6e99402b41f8dce8b48f04534ae5fc15289751b8cb824d520480c2",
              "e9833a53856bf9d02ae9773a65a7cf6a4206867ca084347a041509ddb940a7a6"),
    "test": ("5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
             "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34")}


@pytest.mark.parametrize("split", SUMS)
def test_every_pixel_and_label_is_that_of_the_source(split):
    images, labels = data.fashion_mnist(split)
    raw = ((images[:, 0] + 1) * 127.5).round().byte().numpy()
    heads = [b"\0\0\x08\3" + np.array(raw.shape, ">i4").tobytes(), b"\0\0\x08\1" + np.array(labels.shape, ">i4").tobytes()]
    payloads = [head * (split == "test") + part.tobytes() for head, part in zip(heads, (raw, labels.byte().numpy()))]
    assert tuple(hashlib.sha256(payload).hexdigest() for payload in payloads) == SUMS[split]


def test_what_one_caller_does_to_its_clothes_does_not_show_in_another_s():
    for mine, first in zip(data.fashion_mnist("test"), data.fashion_mnist("test")):
        mine.zero_()
        assert not torch.equal(mine, first) and torch.equal(first, data.fashion_mnist("test")[mine.ndim == 1])


@pytest.fixture(scope="module")
def prepare(root):
    """The script that makes the file."""
    spec = importlib.util.spec_from_file_location("prepare", root / "data" / "prepare" / "fashion_mnist.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PICTURES = {"noise": lambda rng: rng.integers(0, 256, (12, 28, 28)), "black": lambda rng: np.zeros((4, 28, 28)),
            "white": lambda rng: np.full((4, 28, 28), 255), "strokes": lambda rng: rng.integers(0, 2, (8, 28, 28)) * 200}


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_what_is_encoded_is_decoded(prepare, draw):
    pictures = draw(np.random.default_rng(0)).astype(np.uint8)
    frequencies = prepare.counted(pictures)
    states, words = prepare.encoded(pictures, frequencies)
    assert bool((frequencies.sum(1) == data.SUM).all()) and states.dtype == np.uint32 and words.dtype == np.uint16
    assert np.array_equal(data.decoded(frequencies, states, words), pictures)


def test_files_that_are_not_the_authors_are_refused(prepare, tmp_path):
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte.gz has sha256 \w{64} \(14 bytes\), expected 0402a96d92fd26"):
        prepare.read_source(tmp_path, "t10k-labels-idx1-ubyte")


def test_only_the_split_that_is_asked_for_is_read(home):
    with np.load(home / "data" / "fashion_mnist.npz") as members:
        kept = {name: members[name] for name in ("test_states", "test_words", "test_labels", "frequencies")}
    np.savez(home / "data" / "fashion_mnist.npz", **kept)                # a sound file that has no training images
    declare(home, "fashion_mnist.npz")
    assert len(data.fashion_mnist("test")[0]) == 10_000
    with pytest.raises(KeyError, match="train_labels"):
        data.fashion_mnist("train")


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="split is 'validation', expected 'train' or 'test'"):
        data.fashion_mnist("validation")


# --- emoji ----------------------------------------------------------------------------------------------------------

SPLITS = ("train", "pairs", "test")


@pytest.fixture(scope="module")
def emoji():
    return {split: data.emoji(split) for split in SPLITS}


@pytest.mark.parametrize("split", SPLITS)
def test_emoji_have_the_stated_shape_and_range(emoji, split):
    images, style, name = emoji[split]
    assert images.shape == (len(style), 3, 64, 64) and images.dtype == torch.float32
    assert images.min() == -1 and images.max() == 1
    assert style.shape == name.shape and style.dtype == name.dtype == torch.int64
    assert set(style.tolist()) == set(range(4)) and 0 <= name.min() and name.max() < len(data.emoji_captions())


def test_each_picture_of_an_emoji_is_in_one_split(emoji):
    pictures = [pair for split in SPLITS for pair in zip(emoji[split].style.tolist(), emoji[split].name.tolist())]
    assert len(pictures) == len(set(pictures)) == 4 * len(data.emoji_captions())


def test_test_emoji_are_new_and_those_of_pairs_are_known_in_three_styles(emoji):
    train, pairs, test = (emoji[split].name for split in SPLITS)
    count = len(data.emoji_captions())
    assert not set(test.tolist()) & {*train.tolist(), *pairs.tolist()}
    assert set(test.bincount(minlength=count).tolist()) == {0, 4} and 0.07 < len(test) / (4 * count) < 0.09
    assert len(set(pairs.tolist())) == len(pairs) and 0.07 < len(pairs) / (len(pairs) + len(train)) < 0.09
    assert set(train.bincount(minlength=count)[pairs].tolist()) == {3}


def test_no_test_picture_is_drawn_nearly_like_a_training_one(emoji):
    for style in range(4):
        train, test = (emoji[s].images[emoji[s].style == style].div(2).flatten(1) for s in ("train", "test"))
        mirrored = train.unflatten(1, (3, 64, 64)).flip(-1).flatten(1)
        assert torch.cdist(test, torch.cat([train, mirrored])).min() / train.shape[1] ** 0.5 > 0.055


def test_captions_say_what_is_drawn(emoji):
    captions = data.emoji_captions()
    names = [caption.name for caption in captions]
    assert len(set(names)) == len(names) and all(caption.keywords and "" not in caption.keywords for caption in captions)
    apple = captions[names.index("red apple")]
    assert (apple.emoji, apple.group) == ("🍎", "food-drink") and {"apple", "fruit", "red"} <= set(apple.keywords)
    assert {caption.held_out for caption in captions} == {"", "all", *data.STYLES}
    for name, channel in [("red square", 0), ("green square", 1), ("blue square", 2)]:
        [images] = [part.images[part.name == names.index(name)] for part in [emoji["train"]]]
        assert (images[:, :, 32, 32].argmax(1) == channel).all()


def test_an_emoji_stands_on_white(emoji):
    images = emoji["train"].images
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].amin(1)
    assert (corners > 0.9).float().mean() > 0.8


def test_an_unknown_split_of_the_emoji_is_named():
    with pytest.raises(ValueError, match="split is 'validation', expected 'train' or 'pairs' or 'test'"):
        data.emoji("validation")


@pytest.mark.parametrize("name", ["emoji/captions.csv", "emoji/flat.webp", "colour_features.safetensors"])
def test_damaged_emoji_and_features_are_named(home, name):
    shutil.copytree(COURSE / "data" / "emoji", home / "data" / "emoji")
    shutil.copy(COURSE / "data" / "colour_features.safetensors", home / "data")
    flip_a_byte(home / "data" / name)
    with pytest.raises(ValueError, match=f"{name} is damaged.*git checkout -- data/{name}"):
        data.colour_features() if "colour" in name else data.emoji()


# --- words and sentences --------------------------------------------------------------------------------------------

def test_words_are_distinct_lower_case_and_have_vectors_of_length_one():
    words, vectors = data.words()
    assert len(set(words)) == len(words) > 10_000
    assert all(re.fullmatch(r"[a-z0-9]+(?:'[a-z]+)*", word) for word in words)
    assert vectors.shape == (len(words), 128) and vectors.dtype == torch.float32
    assert vectors.norm(dim=1).sub(1).abs().max() < 1e-6


def test_vectors_of_like_words_are_near():
    words, vectors = data.words()

    def nearness(one, other):
        return (vectors[words.index(one)] @ vectors[words.index(other)]).item()

    for near, far in [("automobile car", "automobile flower"), ("physician doctor", "physician soup"),
                      ("puppy dog", "puppy violin"), ("aircraft airplane", "aircraft flower"),
                      ("furious angry", "furious tiny")]:
        assert nearness(*near.split()) > nearness(*far.split()) + 0.3


def test_every_word_of_a_caption_has_a_number():
    texts = [text for caption in data.emoji_captions() for text in (caption.name, *caption.keywords)]
    assert {word for text in (*texts, *data.STYLES) for word in split(text)} <= set(data.words().words)


def test_sentences_are_lower_case_words_of_the_vocabulary():
    both = data.sentences("train") + data.sentences("test")
    assert len(data.sentences()) > 12_500 and 1200 < len(data.sentences("test")) < 1600
    assert len(set(both)) == len(both)
    assert all(4 <= len(line.split()) <= 16 and line == " ".join(line.split()) for line in both)
    assert {word for line in both for word in line.split()} <= set(data.words().words)


def test_the_words_of_the_sentences_come_first_the_commonest_first():
    count = Counter(word for part in ("train", "test") for line in data.sentences(part) for word in line.split())
    first = data.words().words[: len(count)]
    assert set(first) == count.keys() and list(map(count.get, first)) == sorted(count.values(), reverse=True)


def test_no_test_sentence_is_a_near_copy_of_a_training_one():
    train, test = ([set(line.split()) for line in data.sentences(part)] for part in ("train", "test"))
    number = {word: n for n, word in enumerate(set().union(*train, *test))}
    table = torch.zeros(len(train), len(number))
    for row, words in zip(table, train):
        row[[number[word] for word in words]] = 1
    lengths = table.sum(1)
    for words in test[::10]:
        shared = table[:, [number[word] for word in words]].sum(1)
        assert (shared / lengths.clamp(min=len(words))).max() <= 0.6


def test_an_unknown_split_of_the_sentences_is_named():
    with pytest.raises(ValueError, match="split is 'pairs', expected 'train' or 'test'"):
        data.sentences("pairs")


@pytest.mark.parametrize(("name", "read"), [("words.npz", data.words.__wrapped__), ("sentences.txt.xz", data.sentences)])
def test_damaged_words_and_sentences_are_named(home, name, read):
    shutil.copy(COURSE / "data" / name, home / "data")
    flip_a_byte(home / "data" / name)
    with pytest.raises(ValueError, match=f"{name} is damaged.*git checkout -- data/{name}"):
        read()
    (home / "data" / name).unlink()
    data._verify_once.cache_clear()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        read()


# --- damage ---------------------------------------------------------------------------------------------------------

def declare(home: Path, name: str) -> None:
    """Write the true sum of data/`name` into data/checksums.json."""
    file = home / "data" / name
    entry = {"sha256": files.sha256(file), "bytes": file.stat().st_size}
    (home / "data" / "checksums.json").write_text(json.dumps({name: entry}))


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip_a_byte, cut_short])
def test_a_damaged_file_is_named_with_both_sums_and_the_way_back(home, damage):
    file = home / "data" / "fashion_mnist.npz"
    expected = files.sha256(file)
    damage(file)
    with pytest.raises(ValueError) as caught:
        data.fashion_mnist()
    for part in (str(file), files.sha256(file), expected, "git checkout -- data/fashion_mnist.npz", "data/prepare/"):
        assert part in str(caught.value)
    [(name, sound, message)] = [report for report in data.verify_all() if report[0] == file.name]
    assert (name, sound) == ("fashion_mnist.npz", False) and message == str(caught.value)


def test_a_missing_file_is_named_with_the_way_back(home):
    file = home / "data" / "fashion_mnist.npz"
    file.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        data.fashion_mnist()
    assert str(file) in str(caught.value) and "git checkout" in str(caught.value)


def test_a_file_that_is_not_listed_is_refused():
    with pytest.raises(ValueError, match="name is 'mnist.npz', expected one of the files in data/checksums.json"):
        data.path("mnist.npz")


@pytest.mark.parametrize("content", ["{}", None, '{"words.npz": {"sha256": "1"}}', '{\n\n'],
                         ids=["empty", "missing", "no size", "cut short"])
def test_no_table_of_sums_is_no_proof_that_all_is_well(home, content):
    table = home / "data" / "checksums.json"
    table.unlink() if content is None else table.write_text(content)
    found = data.verify_all()
    assert [name for name, *_ in found] == list(data.FILES) and not any(sound for _, sound, _ in found)
    assert all("`git checkout -- data/checksums.json`" in what for *_, what in found)
    with pytest.raises((ValueError, FileNotFoundError), match=r"checksums.json.*`git checkout -- data/checksums.json`"):
        data.fashion_mnist()


def test_a_damaged_table_of_sums_is_named_with_its_line(home):
    (home / "data" / "checksums.json").write_text('{\n  "words.npz": {"sha256": "1",,\n')
    with pytest.raises(ValueError, match=r"checksums.json is damaged: .*line 2 column"):
        data.checksums()


def test_every_file_of_data_is_listed_and_no_other(root):
    assert list(data.checksums()) == sorted(data.FILES)
    tables = {"ledger.csv", "solvers.csv", "parallel.csv", "devices.csv"}                        # `course measure` writes them
    shipped = {path.relative_to(root / "data").as_posix() for path in (root / "data").rglob("*") if path.is_file()
               and path.relative_to(root / "data").parts[0] not in ("LICENSES", "prepare", "checkpoints", "cache")
               and not path.name.endswith((".md", ".lock", ".part"))}
    assert shipped == {*data.FILES, *tables, "checksums.json"}


def test_every_committed_file_is_sound():
    assert [message for _, sound, message in data.verify_all() if not sound] == []


# --- where the data is ----------------------------------------------------------------------------------------------

def test_the_root_is_beside_the_library(root):
    assert data.ROOT == root


def test_an_installed_library_finds_the_course(home, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("site-packages")
    monkeypatch.setattr(files, "__file__", str(elsewhere / "course_lib" / "files.py"))
    monkeypatch.delenv("COURSE_HOME", raising=False)
    monkeypatch.chdir(elsewhere)
    with pytest.raises(FileNotFoundError, match="COURSE_HOME"):
        files.find_root()
    monkeypatch.setenv("COURSE_HOME", str(home))
    assert files.find_root() == home
    monkeypatch.delenv("COURSE_HOME")
    (home / "notebooks" / "solutions").mkdir(parents=True)
    monkeypatch.chdir(home / "notebooks" / "solutions")
    assert files.find_root() == home


# --- atomic writes --------------------------------------------------------------------------------------------------

def test_atomic_write_makes_the_folder_and_replaces_the_file(tmp_path):
    target = tmp_path / "new" / "file"
    for content in (b"first", b"second"):
        files.atomic_write(target, lambda file, content=content: file.write(content))
        assert target.read_bytes() == content
    assert os.listdir(target.parent) == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o444])
def test_a_replaced_file_keeps_its_mode_and_a_new_one_has_the_umasks(tmp_path, mode):
    target = tmp_path / "file"
    before = os.umask(0o027)
    try:
        files.atomic_write(target, lambda file: file.write(b"new"))
        assert target.stat().st_mode & 0o777 == 0o640
        target.chmod(mode)
        files.atomic_write(target, lambda file: file.write(b"newer"))
    finally:
        os.umask(before)
    assert target.stat().st_mode & 0o777 == mode and target.read_bytes() == b"newer"


@pytest.mark.parametrize("error", [RuntimeError("stopped"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_a_write_that_fails_midway_leaves_the_old_file_alone(tmp_path, error):
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def write(file):
        file.write(b"half of the n")
        raise error

    with pytest.raises(type(error)) as caught:
        files.atomic_write(target, write)
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    if isinstance(error, OSError):
        assert str(target) in str(caught.value) and "No space left" in str(caught.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "folder").write_text("in truth a file, which not even root can write into")
    with pytest.raises(OSError, match="could not be written") as caught:
        files.atomic_write(tmp_path / "folder" / "file", lambda file: file.write(b"new"))
    assert str(tmp_path / "folder" / "file") in str(caught.value)


# --- sealed files and locks -----------------------------------------------------------------------------------------

def test_a_sealed_file_gives_back_what_went_in_or_says_that_it_is_damaged(tmp_path):
    path = tmp_path / "file"
    for payload in (b"", b"some bytes"):
        files.write_sealed(path, payload)
        assert files.read_sealed(path) == payload
    content = path.read_bytes()
    for damaged in (b"", content[:-1], content[1:], content + b"x", *(
            content[:i] + bytes([content[i] ^ 1]) + content[i + 1:] for i in range(len(content)))):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"file is damaged: its last 32 bytes are not the SHA-256 sum"):
            files.read_sealed(path)
    with pytest.raises(FileNotFoundError):
        files.read_sealed(tmp_path / "other")


HOLD = """
import sys, time
from course_lib import files
with files.locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_held_by_one_and_dies_with_its_process(root, tmp_path):
    path = tmp_path / "new" / "state.pt"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], cwd=root, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match=r"state.pt: another process is at work on it"), files.locked(path):
            pass
        holder.kill()
    with files.locked(path), pytest.raises(BlockingIOError), files.locked(path):
        pass
    with files.locked(path, wait=True):
        pass


# --- preparation ----------------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.is_dir(), reason=f"needs the original files in {DEBIAN}")
def test_the_committed_file_is_what_the_script_makes(root, tmp_path):
    script = [sys.executable, "data/prepare/fashion_mnist.py", "--source", DEBIAN, "--out", tmp_path / "made.npz"]
    subprocess.run(script, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=True)
    assert files.sha256(tmp_path / "made.npz") == data.checksums()["fashion_mnist.npz"]["sha256"]
