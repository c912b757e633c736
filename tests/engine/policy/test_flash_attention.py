"""Which kernel computes packed attention on CUDA, and its arguments. Stand-ins replace the GPU and the packages."""

import inspect
import sys
from importlib.metadata import PackageNotFoundError
from types import ModuleType, SimpleNamespace

import pytest
import torch
from ralign.engine.policy import flash_attention
from ralign.engine.runtime.errors import UserError
from torch.nn.attention import varlen

BF16, FP16 = torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def _no_choice_is_kept():
    flash_attention.varlen_kernel.cache_clear()
    yield
    flash_attention.varlen_kernel.cache_clear()


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in (flash_attention._CACHE_FOLDER, flash_attention._CACHE_SWITCH, "RANK"):
        monkeypatch.delenv(name, raising=False)


def torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    return "torch", window_size


def torch_2_12(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False
):
    return "torch", window_size, enable_gqa


@pytest.fixture
def machine(monkeypatch):
    """Stands for a GPU of a compute capability, a torch, and installed packages."""

    def set_up(capability, *, installed=(), torchs=torch_2_12):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(varlen, "varlen_attn", torchs)

        def version(distribution):
            if distribution not in {*installed, "quack-kernels"}:
                raise PackageNotFoundError(distribution)
            return "4.0"

        monkeypatch.setattr(flash_attention, "version", version)
        # The name `flash_attn` is there with either package.
        package, cute, compiled = (ModuleType(name) for name in ("flash_attn", "cute", "flash_attn_2_cuda"))
        package.flash_attn_varlen_func = lambda *args, **options: ("flash-attn 2", args, options)
        cute.flash_attn_varlen_func = lambda *args, **options: (("flash-attn 4", args, options), None)
        package.__spec__ = compiled.__spec__ = SimpleNamespace()
        monkeypatch.setitem(sys.modules, "flash_attn", package)
        monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)
        monkeypatch.setitem(sys.modules, "flash_attn_2_cuda", compiled if "flash-attn" in installed else None)

    return set_up


def kernel_for(dtype=BF16, head_size=128):
    return flash_attention.varlen_kernel(torch.device("cuda", 0), dtype, head_size)


ARGUMENTS = ("query", "key", "value", "cu_q", "cu_k", 700, 900)


@pytest.mark.parametrize(
    ("capability", "dtype", "head_size", "installed", "torchs", "expected"),
    [
        ((9, 0), BF16, 128, ["flash-attn-4"], torch_2_12, "flash-attn 4"),
        ((9, 0), BF16, 96, ["flash-attn-4"], torch_2_12, "flash-attn 4"),
        ((10, 0), BF16, 64, ["flash-attn-4"], torch_2_12, "flash-attn 4"),
        ((10, 3), BF16, 128, ["flash-attn-4"], torch_2_11, "flash-attn 4"),
        ((9, 0), BF16, 128, ["flash-attn-4", "flash-attn"], torch_2_11, "flash-attn 4"),
        ((9, 0), BF16, 128, [], torch_2_12, "torch"),
        ((9, 0), FP16, 128, ["flash-attn-4"], torch_2_12, "torch"),
        ((9, 0), BF16, 256, ["flash-attn-4"], torch_2_12, "torch"),
        ((10, 0), BF16, 80, ["flash-attn-4"], torch_2_12, "torch"),
        ((10, 0), BF16, 32, ["flash-attn-4"], torch_2_12, "torch"),
        ((8, 0), BF16, 128, ["flash-attn-4"], torch_2_12, "torch"),
        ((8, 9), BF16, 128, ["flash-attn-4"], torch_2_12, "torch"),
        ((11, 0), BF16, 128, ["flash-attn-4"], torch_2_12, "torch"),
        ((12, 0), BF16, 128, ["flash-attn-4"], torch_2_12, "torch"),
        ((8, 0), BF16, 128, ["flash-attn"], torch_2_12, "torch"),
        ((8, 0), BF16, 128, ["flash-attn"], torch_2_11, "flash-attn 2"),
        ((9, 0), BF16, 256, ["flash-attn", "flash-attn-4"], torch_2_11, "flash-attn 2"),
        ((9, 0), BF16, 128, ["flash-attn"], torch_2_11, "flash-attn 2"),
        ((8, 0), BF16, 128, [], torch_2_11, "torch"),
        # flash-attn 4 alone makes a package `flash_attn`, which is not version 2.
        ((8, 0), BF16, 128, ["flash-attn-4"], torch_2_11, "torch"),
    ],
)  # fmt: skip
def test_which_kernel(capability, dtype, head_size, installed, torchs, expected, machine):
    machine(capability, installed=installed, torchs=torchs)
    assert kernel_for(dtype, head_size)(*ARGUMENTS)[0] == expected


def test_how_torchs_kernel_is_called(machine):
    machine((8, 0))
    assert kernel_for()(*ARGUMENTS) == ("torch", (-1, 0), True)
    flash_attention.varlen_kernel.cache_clear()
    machine((8, 0), torchs=torch_2_11)
    assert kernel_for()(*ARGUMENTS) == ("torch", (-1, 0))


def test_the_installed_torch_takes_the_call(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    kernel = kernel_for()
    bound = inspect.signature(kernel.func).bind(*range(7), **kernel.keywords)
    assert bound.arguments["window_size"] == (-1, 0)


@pytest.fixture
def deterministic():
    yield torch.use_deterministic_algorithms
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("package", ["flash-attn-4", "flash-attn"])
def test_determinism_is_asked_for_at_each_call(package, machine, deterministic):
    """torch's own kernel asks by itself."""
    machine((9, 0), installed=[package], torchs=torch_2_11)
    kernel = kernel_for()
    for wanted in (False, True, False):
        deterministic(wanted)
        name, _, options = kernel(*ARGUMENTS)
        assert name.split()[0] == "flash-attn"
        assert (options["causal"], options["deterministic"]) == (True, wanted)


def test_short_sequences_need_no_kernel_of_their_own(machine):
    """The lengths are upper bounds, never so small that flash-attn 4 compiles special kernels."""
    machine((9, 0), installed=["flash-attn-4"])
    lengths = [
        kernel_for()(*ARGUMENTS[:5], max_q, max_k)[2] for max_q, max_k in [(1, 9), (128, 256), (300, 5000)]
    ]
    assert [(x["max_seqlen_q"], x["max_seqlen_k"]) for x in lengths] == [(257, 257), (257, 257), (300, 5000)]


def test_the_choice_is_made_once_and_said(machine, monkeypatch, caplog):
    asked = []
    machine((9, 0), installed=["flash-attn-4"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked.append(device) or (9, 0))
    with caplog.at_level("INFO"):
        kernel_for()
        kernel_for()
    assert len(asked) == 1
    assert [x.getMessage() for x in caplog.records if x.levelname == "INFO"] == [
        "packed attention: flash-attn 4 (sm_90)"
    ]


class TestCompiledKernels:
    """Where flash-attn 4 keeps them; its package is a file here, which notes the environment of its import."""

    @pytest.fixture(autouse=True)
    def package(self, machine, monkeypatch, tmp_path):
        machine((9, 0), installed=["flash-attn-4"])
        folder = tmp_path / "packages" / "flash_attn"
        folder.mkdir(parents=True)
        (folder / "cute.py").write_text(
            "import os\nflash_attn_varlen_func = {k: v for k, v in os.environ.items() if k.startswith('FLASH_')}\n"
        )
        monkeypatch.syspath_prepend(folder.parent)
        for name in ("flash_attn", "flash_attn.cute"):
            monkeypatch.delitem(sys.modules, name)
        yield
        for name in ("flash_attn", "flash_attn.cute"):
            sys.modules.pop(name, None)  # before monkeypatch puts back what was there

    def seen(self):
        return kernel_for().args[0]

    def test_lie_where_other_caches_lie(self, tmp_path, monkeypatch):
        folder = tmp_path / "cache" / "ralign" / "flash_attn" / "4.0-quack-4.0" / "sm_90"
        assert self.seen() == {
            "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1",
            "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": str(folder),
        }
        assert folder.is_dir()
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert flash_attention._cache_folder("sm_90").is_relative_to(tmp_path / ".cache" / "ralign")

    def test_environment_is_left_as_it_was(self, monkeypatch):
        """vLLM's copy of the package reads the same names."""
        monkeypatch.setenv("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "0")
        before = dict(flash_attention.os.environ)
        assert self.seen()["FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"] == "0"
        assert dict(flash_attention.os.environ) == before

    def test_users_folder_is_taken(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(tmp_path / "mine"))
        assert self.seen()["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"] == str(tmp_path / "mine")

    def test_folder_that_cannot_be_made_is_named(self, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        with pytest.raises(
            UserError, match=r"kept in .*/file/ralign/.*Not a directory; XDG_CACHE_HOME or FLASH_"
        ):
            self.seen()

    def test_folder_without_locks_is_named(self, monkeypatch):
        def no_locks(*_):
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(flash_attention.fcntl, "flock", no_locks)
        with pytest.raises(UserError, match="Function not implemented.* on a file system with locks"):
            self.seen()

    @pytest.mark.parametrize(("rank", "num_lines"), [("0", 1), ("5", 0)])
    def test_first_start_says_that_it_compiles(self, rank, num_lines, monkeypatch, caplog, tmp_path):
        monkeypatch.setenv("RANK", rank)
        folder = self.seen()["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"]
        lines = [x.getMessage() for x in caplog.records if x.levelname == "WARNING"]
        assert (
            lines
            == [
                "flash-attn 4 compiles attention for sm_90 at the first calls, at most 120 s in all, "
                f"and stores it in {folder}"
            ][:num_lines]
        )

    def test_later_starts_do_not(self, caplog):
        kept = flash_attention._cache_folder("sm_90") / "0123" / "fwd" / "4567.o"
        kept.parent.mkdir(parents=True)
        kept.touch()
        self.seen()
        assert not [x for x in caplog.records if x.levelname == "WARNING"]
