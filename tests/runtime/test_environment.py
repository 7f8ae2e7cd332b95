"""Environment variables that are set before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import succeeds
from yt8m.runtime.environment import prepare_environment

VARIABLES = ("OMP_WAIT_POLICY", "MKL_CBWR")


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that monkeypatch restores the variable
        monkeypatch.delenv(name)


def test_other_cpus_keep_the_default_kernels(tmp_path: Path) -> None:
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text("vendor_id\t: AuthenticAMD\n")
    prepare_environment(cpu_info)
    assert (os.environ["OMP_WAIT_POLICY"], os.environ.get("MKL_CBWR")) == ("PASSIVE", None)
    prepare_environment(tmp_path / "nowhere")
    assert "MKL_CBWR" not in os.environ


def test_matrix_products_are_reproducible_on_intel_cpus(tmp_path: Path) -> None:
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text("vendor_id\t: GenuineIntel\n")
    prepare_environment(cpu_info)
    assert os.environ["MKL_CBWR"] == "AUTO,STRICT"


def test_variables_set_by_the_user_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text("vendor_id\t: GenuineIntel\n")
    for name in VARIABLES:
        monkeypatch.setenv(name, "COMPATIBLE")
    prepare_environment(cpu_info)
    assert [os.environ[name] for name in VARIABLES] == ["COMPATIBLE", "COMPATIBLE"]


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_of_the_command_sleep_by_default(
    given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    succeeds("--version")
    assert os.environ["OMP_WAIT_POLICY"] == expected


PRODUCTS = """
from yt8m.runtime.environment import prepare_environment
prepare_environment()
import torch
frames, weights = torch.randn(64, 1152), torch.randn(2048, 1152)
products = []
for threads in (1, 2, 3):
    torch.set_num_threads(threads)
    products.append(torch.nn.functional.linear(frames, weights))
print(all(torch.equal(products[0], product) for product in products))
"""


def test_a_matrix_product_does_not_depend_on_the_number_of_threads() -> None:
    done = subprocess.run([sys.executable, "-c", PRODUCTS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
