"""Installing the package with and without a C compiler."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packed.building import ROOT, call, compiler

from bitmaps.packed.kernels import REFERENCE, VARIABLE


@pytest.mark.slow
@pytest.mark.parametrize("cc", ["/bin/false", "/nowhere/cc", None])
def test_the_package_installs_with_and_without_a_compiler(tmp_path: Path, cc: str | None) -> None:
    try:
        if int(version("setuptools").split(".")[0]) < 77:
            pytest.skip("an older setuptools than the package is built with")
        version("pip")
    except PackageNotFoundError:
        pytest.skip("no setuptools or no pip, and the network is not asked")
    tree, wheels, site = (tmp_path / name for name in ("tree", "wheels", "site"))
    for name in ("bitmaps", "conf"):
        shutil.copytree(
            ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tree)
    build = (
        "pip",
        "wheel",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        wheels,
        tree,
    )
    done = call(sys.executable, "-m", *build, cwd=tmp_path, CC=compiler() if cc is None else cc)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = wheels.glob("bitmaps-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert any("_kernels" in name for name in archive.namelist()) is (cc is None)
        archive.extractall(site)
    code = """if True:
        import torch
        from bitmaps.packed import kernels as native, custom_ops
        found = native.kernels()
        print(native.__file__)
        print(native.library_file())
        print(found.name if found else "reference")
        print(bool(found and found.linear))
        weight = torch.full((3, 1), 15, dtype=torch.uint8)
        print(custom_ops.binary_linear(torch.ones(1, 8), weight, torch.ones(3), torch.zeros(3)).tolist())
    """
    done = call(
        sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site), **{VARIABLE: "auto"}
    )
    assert done.returncode == 0, done.stderr
    where, file, used, from_c, y = done.stdout.splitlines()
    assert Path(where).is_relative_to(site)
    assert y == "[[4.0, 4.0, 4.0]]"
    if cc is None:
        assert Path(file).parent == Path(where).parent
        assert used != REFERENCE
        assert from_c == str((Path(sysconfig.get_paths()["include"]) / "Python.h").is_file())
    else:
        assert (file, used) == ("None", REFERENCE)
