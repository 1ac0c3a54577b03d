"""This package judges draws: figures, checks and a verdict; and it reads and writes their files."""

from ozaki.diagnostics.arviz_data import (
    components,
    dataset,
    groups,
    inference_data,
    label,
    left_out,
)
from ozaki.diagnostics.chain_files import load
from ozaki.diagnostics.evidence import Problem
from ozaki.diagnostics.figures import (
    effective_sample_size,
    sampler_test,
    step_bias,
    summary,
    thinning,
    verdict,
)
from ozaki.diagnostics.judgement import Verdict
from ozaki.diagnostics.netcdf import save
from ozaki.diagnostics.stein import SteinTest, kernel_stein_discrepancy, stein_test

__all__ = [
    "Problem",
    "SteinTest",
    "Verdict",
    "components",
    "dataset",
    "effective_sample_size",
    "groups",
    "inference_data",
    "kernel_stein_discrepancy",
    "label",
    "left_out",
    "load",
    "sampler_test",
    "save",
    "stein_test",
    "step_bias",
    "summary",
    "thinning",
    "verdict",
]
