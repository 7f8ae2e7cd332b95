"""Download plans: names of shards, fractions and lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.downloads import ALPHABET
from yt8m.download.plan import Fraction, Shard, local_name, official_server, other_server, read_plan, select
from yt8m.errors import UsageError, Yt8mError


@pytest.mark.parametrize(
    ("plan_name", "name"),
    [
        ("trainaa.tfrecord", "train0000.tfrecord"),
        ("trainab.tfrecord", "train0001.tfrecord"),
        ("trainaA.tfrecord", "train0026.tfrecord"),
        ("trainba.tfrecord", "train0062.tfrecord"),
        ("trainAA.tfrecord", "train1638.tfrecord"),
        ("train00.tfrecord", "train3276.tfrecord"),
        ("train99.tfrecord", "train3843.tfrecord"),
        ("validateaz.tfrecord", "validate0025.tfrecord"),
        ("train-1.tfrecord", "train-1.tfrecord"),
        ("a.tfrecord", "a.tfrecord"),
    ],
)
def test_letters_of_a_plan_name_become_a_number(plan_name: str, name: str) -> None:
    assert local_name(plan_name) == name


def test_local_names_of_a_partition_are_numbered_in_plan_order() -> None:
    names = [local_name(f"test{first}{second}.tfrecord") for first in ALPHABET for second in ALPHABET]
    assert names == [f"test{number:04d}.tfrecord" for number in range(3844)]


# The remainders were computed with md5sum and bc.
@pytest.mark.parametrize(
    ("plan_name", "of_100", "of_7"),
    [("trainaa", 37, 5), ("trainab", 45, 4), ("train00", 58, 4), ("validateZ9", 24, 5), ("testq7", 81, 2)],
)
def test_a_shard_belongs_to_one_fraction_by_the_md5_of_its_name(plan_name: str, of_100: int, of_7: int) -> None:
    for count, remainder in ((100, of_100), (7, of_7)):
        contained = [Fraction(number, count).contains(f"{plan_name}.tfrecord") for number in range(1, count + 1)]
        assert contained.index(True) == remainder
        assert sum(contained) == 1
    assert Fraction.parse(f"{of_100 + 1}/100") == Fraction(of_100 + 1, 100)


@pytest.mark.parametrize("text", ["", "1", "0/5", "6/5", "1/0", "-1/5", "1/5/9", "1.5/3", " 1/5", "1,100", "١/٢"])
def test_invalid_fractions_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--shard .*expected NUMBER/COUNT"):
        Fraction.parse(text)


def plan_of(*names: str) -> tuple[Shard, ...]:
    return read_plan(json.dumps({"files": dict.fromkeys(names, "0" * 32)}).encode(), "plan")


def test_lists_select_shards_and_invalid_lists_are_refused(tmp_path: Path) -> None:
    names = [f"validatea{digit}.tfrecord" for digit in "0123"]
    plans = {"2/frame/validate": plan_of(*names), "3/frame/validate": plan_of(*names)}
    path = tmp_path / "list.txt"
    path.write_text(
        "# a comment\n\n  video/valid/validate0052.tfrecord  \nvalidatea1.tfrecord # in both\n"
        "3/frame/validate/validate0055.tfrecord\n./segment/train/validate0055.tfrecord\n"
    )
    chosen = select(plans, None, path)
    assert {name: [shard.plan_name[-10] for shard in shards] for name, shards in chosen.items()} == {
        "2/frame/validate": ["0", "1"],
        "3/frame/validate": ["1", "3"],
    }
    path.write_text("".join(f"video/valid/other{number}.tfrecord\n" for number in range(5)))
    with pytest.raises(UsageError) as caught:
        select(plans, None, path)
    assert str(caught.value) == (
        f"{path}: not in the plans of 2/frame/validate, 3/frame/validate: video/valid/other0.tfrecord, "
        "video/valid/other1.tfrecord, video/valid/other2.tfrecord and 2 more."
    )
    for line in ("segment/test/validate0052.tfrecord", "../validate0052.tfrecord", "validate0052"):
        path.write_text(line)
        with pytest.raises(UsageError, match="not in the plans"):
            select(plans, None, path)
    path.write_text("# nothing\n")
    with pytest.raises(UsageError, match="contains no names"):
        select(plans, None, path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        select(plans, None, path)
    with pytest.raises(UsageError, match="No such file"):
        select(plans, None, tmp_path / "absent.txt")


def test_a_list_and_a_fraction_select_their_intersection(tmp_path: Path) -> None:
    plans = {"2/frame/train": plan_of("trainaa.tfrecord", "trainab.tfrecord", "train00.tfrecord")}
    path = tmp_path / "list.txt"
    path.write_text("trainaa.tfrecord\ntrainab.tfrecord\n")
    # trainab and train00 are in fraction 5 of 7.
    assert [shard.name for shard in select(plans, Fraction(5, 7), path)["2/frame/train"]] == ["train0001.tfrecord"]
    with pytest.raises(UsageError, match=r"^None of the 3 shards of 2/frame/train is selected"):
        select(plans, Fraction(1, 7), None)


GOOD = "0123456789abcdef0123456789ABCDEF"


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (b"", "is no download plan ("),
        (b"<html>", "is no download plan ("),
        (b"\xff\xff", "is no download plan ("),
        (b"[" * 100_000, "is no download plan ("),
        (b"[]", 'expected JSON with an object "files"'),
        (b"{}", 'expected JSON with an object "files"'),
        (b'{"files": []}', 'expected JSON with an object "files"'),
        (b'{"files": {}}', 'expected JSON with an object "files"'),
        (b'{"files": {"aa.tfrecord": "%b", "aa.tfrecord": "%b"}}' % (GOOD.encode(), GOOD.encode()), "occurs twice"),
        ({"../aa.tfrecord": GOOD}, "contains '../aa.tfrecord'"),
        ({"a/aa.tfrecord": GOOD}, "is no name of a shard"),
        ({"a\\aa.tfrecord": GOOD}, "is no name of a shard"),
        ({"/aa.tfrecord": GOOD}, "is no name of a shard"),
        ({".aa.tfrecord": GOOD}, "is no name of a shard"),
        ({"aa.tfrecord\n": GOOD}, "is no name of a shard"),
        ({"a\taa.tfrecord": GOOD}, "is no name of a shard"),
        ({"aa.tfrecord.exe": GOOD}, "is no name of a shard"),
        ({".tfrecord": GOOD}, "is no name of a shard"),
        ({"": GOOD}, "is no name of a shard"),
        ({"träinaa.tfrecord": GOOD}, "is no name of a shard"),
        ({"x" * 300 + ".tfrecord": GOOD}, "is no name of a shard"),
        ({"aa.tfrecord": GOOD[1:]}, "expected 32 hexadecimal digits"),
        ({"aa.tfrecord": "g" * 32}, "expected 32 hexadecimal digits"),
        ({"aa.tfrecord": None}, "expected 32 hexadecimal digits"),
        # The local name of the first is the plan name of the second. The next pairs differ only in case.
        ({"0000.tfrecord": GOOD, "003276.tfrecord": GOOD}, None),
        ({"t-aa.tfrecord": GOOD, "T-aa.tfrecord": GOOD}, "would be the same file, T-0000.tfrecord"),
        ({"x-.tfrecord": GOOD, "X-.tfrecord": GOOD}, "x-.tfrecord and X-.tfrecord would be the same file"),
    ],
)
def test_invalid_plans_are_refused(plan: bytes | dict[str, Any], expected: str | None) -> None:
    if isinstance(plan, dict):
        plan = json.dumps({"files": plan, "other": 1}).encode()
    if expected is None:
        assert len(read_plan(plan, "plan")) == 2
        return
    with pytest.raises(Yt8mError) as caught:
        read_plan(plan, "https://host/plan.json")
    message = str(caught.value)
    assert message.startswith("https://host/plan.json: ")
    assert expected in message
    assert message.endswith(".")
    assert len(message) < 400
    assert message.isprintable()


def test_plans_are_sorted_by_local_name() -> None:
    plan = {"files": {"trainab.tfrecord": GOOD, "trainaa.tfrecord": "0" * 32}, "mirrors": ["us"]}
    assert read_plan(json.dumps(plan).encode(), "plan") == (
        Shard("train0000.tfrecord", "trainaa.tfrecord", "0" * 32),
        Shard("train0001.tfrecord", "trainab.tfrecord", GOOD.lower()),
    )


def test_urls_of_the_official_server() -> None:
    server = official_server("eu")
    (shard,) = plan_of("trainaa.tfrecord")
    assert server.plan_url("2/frame/train") == (
        "https://storage.googleapis.com/data.yt8m.org/2/download_plans/frame_train.json"
    )
    assert server.shard_url("3/frame/test", shard) == (
        "https://storage.googleapis.com/eu.data.yt8m.org/3/frame/test/trainaa.tfrecord"
    )
    assert f"{server.vocabularies}/2/vocabulary.csv" == "https://research.google.com/youtube8m/csv/2/vocabulary.csv"


@pytest.mark.parametrize(
    "url",
    [
        "http://user:SECRET@",
        "http://user:SECRET@host:99999999",
        "ftp://user:SECRET@host",
        "user:SECRET@host",
        "https://host/path?token=SECRET",
        "https://user:SE/SECRET@host/a?b",
        "https://user:x@SECRET@host/?b",
    ],
)
def test_an_invalid_address_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(UsageError, match=r"--server .*: expected an address such as") as raised:
        other_server(url)
    assert "SECRET" not in str(raised.value)


def test_a_password_is_in_no_address_of_a_server() -> None:
    server = other_server("https://user:p%40ss:SECRET@host:8000/path/")
    assert "SECRET" not in repr(server)
    assert server.plan_url("3/frame/test") == "https://host:8000/path/3/download_plans/frame_test.json"
    assert server.authorization == "Basic dXNlcjpwQHNzOlNFQ1JFVA=="  # user:p@ss:SECRET
