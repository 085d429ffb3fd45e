"""The cards in ``datasets/`` are what the manifest says, and the manifest says what torchvision says."""

from __future__ import annotations

import re

import pytest

from tinyml_edu import _torchvision, data
from tinyml_edu.data import cards
from tinyml_edu.data.manifest import entries, entry
from tinyml_edu.errors import UnknownNameError


def test_committed_cards_are_up_to_date(repository):
    assert cards.stale(repository / "datasets") == []


def test_a_stale_a_missing_and_a_fresh_card_are_told_apart(tmp_path, capsys):
    assert cards.main(["--folder", str(tmp_path)]) == 0
    assert cards.main(["--folder", str(tmp_path), "--check"]) == 0
    (tmp_path / "digits.md").write_text("edited by hand")
    (tmp_path / "cifar10.md").unlink()
    assert sorted(cards.stale(tmp_path)) == ["cifar10.md", "digits.md"]
    assert cards.main(["--folder", str(tmp_path), "--check"]) == 1
    assert "is out of date; run python -m tinyml_edu.data.cards" in capsys.readouterr().out


def test_no_card_is_left_over_from_a_removed_set(repository):
    assert {p.name for p in (repository / "datasets").iterdir()} == set(cards.files())


@pytest.mark.parametrize("name", data.names())
def test_a_card_names_licence_origin_splits_and_digests(name):
    text = data.card(name)
    found = entry(name)
    for part in (found.title, found.licence, found.origin, found.rule, *found.files.values()):
        assert part in text
    for source in found.originals.values():
        assert source["url"] in text
        assert source["md5"] in text
    assert all(f"{count:,}" in text for count in found.splits.values())


def test_an_unknown_card_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        data.card("digit")


def test_addresses_and_digests_are_torchvisions():
    datasets = _torchvision.load().datasets
    known = {c.filename: (c.url, c.tgz_md5) for c in (datasets.CIFAR10, datasets.CIFAR100)}
    fashion = datasets.FashionMNIST
    known |= {name: (fashion.mirrors[0] + name, md5) for name, md5 in fashion.resources}
    listed = [item for e in entries().values() for item in e.originals.items()]
    assert {name for name, _ in listed} == set(known)
    for name, source in listed:
        assert (source["url"], source["md5"]) == known[name]


@pytest.mark.parametrize("name", data.names())
def test_manifest_entries_are_complete(name):
    found = entry(name)
    assert list(found.splits) == ["train", "validation", "test"]
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in found.files.values())
    if found.kind == "real":
        assert entry(found.stand_in).kind in ("embedded", "made")
        assert found.files
        assert found.originals
    else:
        assert not found.files
        assert not found.originals
