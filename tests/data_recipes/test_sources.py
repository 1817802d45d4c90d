"""Debian packages and wheels as sources of media."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_recipes.sources import DEBIAN_PACKAGES, debian_package
from vlm.errors import ConfigError, DataError


@pytest.mark.parametrize("name", list(DEBIAN_PACKAGES))
def test_package_holds_what_is_wanted(name: str) -> None:
    try:
        root = debian_package(name)
    except DataError as error:
        pytest.skip(str(error))
    assert (root / DEBIAN_PACKAGES[name].probe).stat().st_size > 0
    assert debian_package(name) == root


def test_unknown_package() -> None:
    with pytest.raises(ConfigError, match="tuxpaint-stamps-default"):
        debian_package("no-such-package")


def test_other_systems_get_a_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if Path("/", DEBIAN_PACKAGES["opencv-doc"].probe).exists():
        pytest.skip("opencv-doc is installed here, so nothing has to be downloaded")
    monkeypatch.setenv("VLM_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"opencv-doc .*no apt-get"):
        debian_package("opencv-doc")
