"""This package holds symmetric operators, and it alone knows how a curvature is stored.

There are four kinds, one a file, each with any batch dimensions in front:

* `Diagonal`: diag(a);
* `LowRank`: diag(a) + B diag(e) Bᵀ with e of either sign, never built as a D × D matrix;
* `Grouped`: the same with few different numbers in a, by eigenpairs, so that every f is cheap;
* `Dense`: a symmetric matrix, or its eigendecomposition, whichever it was made from.

`spectral(f)`, f applied to the eigenvalues, is exact. The contractions of the low-rank
kind are those of docs/mathematics.md, "Never build D×D".
"""

from ozaki.linalg.base import SymmetricOperator
from ozaki.linalg.dense import Dense
from ozaki.linalg.diagonal import Diagonal
from ozaki.linalg.grouped import Grouped
from ozaki.linalg.low_rank import LowRank

__all__ = ["Dense", "Diagonal", "Grouped", "LowRank", "SymmetricOperator"]
