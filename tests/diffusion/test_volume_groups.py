import numpy as np
import pytest

from denoizarr.diffusion.volume_groups import group_volumes, read_bvals
from denoizarr.errors import BadRequest, ImageNotFound


def test_b0_and_weighted_volumes_are_groups_of_their_own():
    found = group_volumes([0, 1000, 5, 1000, 50, 51], 6)
    assert found.groups == ((0, 2, 4), (1, 3, 5))
    assert found.copied == ()


def test_a_lone_b0_is_kept():
    found = group_volumes([0, 1000, 1000, 1000], 4)
    assert (found.groups, found.copied) == (((1, 2, 3),), (0,))


def test_b0_volumes_are_kept_when_asked():
    found = group_volumes([0, 1000, 0, 1000, 1000], 5, b0_denoising=False)
    assert (found.groups, found.copied) == (((1, 3, 4),), (0, 2))


def test_the_threshold_moves_volumes():
    assert group_volumes([65, 65, 65, 990, 1000, 1010], 6, b0_threshold=70).groups == ((0, 1, 2), (3, 4, 5))
    assert group_volumes([65, 65, 65, 990, 1000, 1010], 6).groups == ((0, 1, 2, 3, 4, 5),)


def test_shells_are_told_apart_and_not_torn():
    bvals = [0, 2990, 990, 1005, 3010, 995, 3000]
    assert group_volumes(bvals, 7, by_shell=True).groups == ((2, 3, 5), (1, 4, 6))


@pytest.mark.parametrize(
    "text", ["0 1000 2000.5\n", "0\n1000\n2000.5\n", "0, 1000, 2e3\t\n", "  0 1000\n2000"]
)
def test_files_in_a_row_or_a_column(tmp_path, text):
    (tmp_path / "dwi.bval").write_text(text)
    found = read_bvals(tmp_path / "dwi.bval")
    assert found.shape == (3,)
    assert found[1] == 1000


def test_columns_of_numbers():
    assert read_bvals(np.array([[0], [1000]])).tolist() == [0, 1000]


@pytest.mark.parametrize(
    ("bvals", "n", "said"),
    [
        ([0, 1000], 3, "got 2 b-values, expected 3"),
        ([0, 1000, 1000, 1000], 3, "got 4 b-values, expected 3"),
        ([0, np.nan, 1000, 1000], 4, "volume 1"),
        ([0, 1000, -1000, 1000], 4, "volume 2"),
        ([[0, 1], [2, 3]], 4, "shape"),
        ([0, 1000, 1000], 3, "too few diffusion-weighted volumes"),
        ([0, 0, 1000, 1000, 1000], 5, "b0_denoising=False"),
        ([1000, 1000, 1000, 3000, 3000, 3000], 6, None),
    ],
)
def test_bad_b_values_are_refused(bvals, n, said):
    if said is None:
        assert group_volumes(bvals, n, by_shell=True).groups == ((0, 1, 2), (3, 4, 5))
        return
    with pytest.raises(BadRequest, match=said):
        group_volumes(bvals, n)


def test_a_shell_of_two_is_refused():
    with pytest.raises(BadRequest, match=r"shell of b = 3000.*leave group_by_shell out"):
        group_volumes([1000, 1000, 1000, 3000, 3000], 5, by_shell=True)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(ImageNotFound, match="no file of b-values"):
        read_bvals(tmp_path / "none.bval")
    (tmp_path / "x.bval").write_text("0 1000 many")
    with pytest.raises(BadRequest, match="not a file of b-values"):
        read_bvals(tmp_path / "x.bval")
