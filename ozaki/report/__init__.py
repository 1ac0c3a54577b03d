"""This package writes reports: one page that says whether to trust the draws."""

from ozaki.report.page import write_report

__all__ = ["write_report"]
