from __future__ import annotations

import os
from pathlib import Path

from proxy.config.watch import Watch


def looks(watch: Watch, number: int) -> list[bool]:
    return [watch.has_changed() for _ in range(number)]


def test_a_change_counts_when_it_has_stayed_for_a_look(tmp_path: Path) -> None:
    file = tmp_path / "sidestep.yaml"
    file.write_text("one")
    watch = Watch([file])
    assert looks(watch, 2) == [False, False]
    file.write_text("two, half")
    assert looks(watch, 1) == [False]
    file.write_text("two, whole")
    assert looks(watch, 2) == [False, True]


def test_a_change_that_was_taken_is_none(tmp_path: Path) -> None:
    file = tmp_path / "sidestep.yaml"
    file.write_text("one")
    watch = Watch([file])
    file.write_text("two")
    assert looks(watch, 2) == [False, True]
    watch.take()
    assert looks(watch, 2) == [False, False]


def test_the_same_content_is_no_change(tmp_path: Path) -> None:
    file = tmp_path / "sidestep.yaml"
    file.write_text("one")
    watch = Watch([file])
    os.utime(file, ns=(1, 1))
    (tmp_path / "other").write_text("one")
    (tmp_path / "other").replace(file)
    assert looks(watch, 3) == [False] * 3


def test_a_change_that_leaves_size_and_time_alone_is_seen_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "sidestep.yaml"
    file.write_text("one")
    os.utime(file, ns=(1, 1))
    watch = Watch([file])
    (tmp_path / "other").write_text("two")
    os.utime(tmp_path / "other", ns=(1, 1))
    (tmp_path / "other").replace(file)
    assert looks(watch, 2) == [False, True]


def a_config_map(folder: Path, version: str, content: str) -> None:
    """Publish a version as kubelet does: file -> ..data -> a folder by time, swapped by renaming a link."""
    (folder / version).mkdir()
    (folder / version / "sidestep.yaml").write_text(content)
    (folder / "..data_tmp").symlink_to(version)
    (folder / "..data_tmp").rename(folder / "..data")


def test_a_config_map_is_seen_to_change(tmp_path: Path) -> None:
    file = tmp_path / "sidestep.yaml"
    a_config_map(tmp_path, "..2026_01_01", "one")
    file.symlink_to("..data/sidestep.yaml")
    watch = Watch([file])
    a_config_map(tmp_path, "..2026_01_02", "two")
    assert looks(watch, 2) == [False, True]


def test_a_file_that_is_missing_for_a_look_has_not_changed_when_it_is_back(tmp_path: Path) -> None:
    file = tmp_path / "sidestep.yaml"
    file.write_text("one")
    watch = Watch([file])
    file.rename(tmp_path / "away")
    assert looks(watch, 1) == [False]
    (tmp_path / "away").rename(file)
    assert looks(watch, 2) == [False, False]


def test_a_file_that_is_gone_for_good_is_a_change(tmp_path: Path) -> None:
    file = tmp_path / "sidestep.yaml"
    file.write_text("one")
    watch = Watch([file])
    file.unlink()
    assert looks(watch, 2) == [False, True]


def test_files_that_join_are_known_as_they_are_and_the_others_stay_known_as_they_were(tmp_path: Path) -> None:
    file, key = tmp_path / "sidestep.yaml", tmp_path / "key"
    file.write_text("one")
    key.write_text("secret")
    watch = Watch([file])
    file.write_text("two")
    watch.follow([file, key])
    assert looks(watch, 2) == [False, True]
    watch.take()
    key.write_text("rotated")
    assert looks(watch, 2) == [False, True]
