"""Trees of files read and restored again: nothing is lost, nothing is made elsewhere."""

from pathlib import Path

import pytest
from hypothesis import given, settings

from lab_backup.sources.files.compare import differences
from lab_backup.sources.files.tree import LocalFileTree
from lab_backup.targets.files.restore import restore_tree
from lab_backup.targets.files.target import FileTreeTarget
from support.file_trees import Node, judged_by_tar, make, trees


def copy(source: Path, to: Path, *, devices: bool = True) -> list[str]:
    """Restore the tree at `source` directly, and return all warnings."""
    with LocalFileTree(source) as tree, FileTreeTarget(to, devices=devices) as target:
        restore_tree(tree, target)
        target.finish()
        return [*tree.warnings, *target.warnings]


def unlike(first: Path, second: Path) -> list[str]:
    """Return the differences between two folders."""
    with LocalFileTree(first) as one, LocalFileTree(second) as two:
        return [str(difference) for difference in differences(one, two)]


@settings(max_examples=60)
@given(tree=trees)
def test_any_tree_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, tree: Node) -> None:
    """Whatever a tree holds, its copy is the same to our own comparer and to GNU tar, byte by byte and in nanoseconds."""
    folder = tmp_path_factory.mktemp("tree")
    make(folder / "source", tree)
    assert copy(folder / "source", folder / "copy") == []
    assert unlike(folder / "source", folder / "copy") == []
    assert judged_by_tar(folder / "source") == judged_by_tar(folder / "copy")
