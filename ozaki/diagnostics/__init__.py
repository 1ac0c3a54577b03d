"""Whether to trust draws: figures, checks, a verdict, and the files that draws are kept in."""

from ozaki.diagnostics.arviz_data import (
    components,
    dataset,
    groups,
    inference_data,
    label,
    left_out,
    save,
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
