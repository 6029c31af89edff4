"""What a state does between two inputs: HiPPO matrices, diagonal initialisers, parameter transforms, discretisations.

Everything here is computed in float64 on the CPU, once, when a layer is made; layers store what they need in float32. The exceptions are
the transforms and ``discretize_diagonal``, which run in every forward pass.
"""

from statescan.dynamics.diagonal import DiagonalInit, InputInit, complex_normal, diagonal_init, input_init
from statescan.dynamics.discretize import discretize_dense, discretize_diagonal, discretize_dplr, phi1
from statescan.dynamics.hippo import NPLR, Measure, hippo, low_rank, nplr
from statescan.dynamics.ptd import Diagonalised, ptd
from statescan.dynamics.scaled import legs_reconstruct, scaled_legs
from statescan.dynamics.transfer import dense_transfer, generating_function, kernel_transfer, modal_transfer
from statescan.dynamics.transforms import Transform, apply_transform, invert_transform, log_uniform

__all__ = [
    "NPLR",
    "DiagonalInit",
    "Diagonalised",
    "InputInit",
    "Measure",
    "Transform",
    "apply_transform",
    "complex_normal",
    "dense_transfer",
    "diagonal_init",
    "discretize_dense",
    "discretize_diagonal",
    "discretize_dplr",
    "generating_function",
    "hippo",
    "input_init",
    "invert_transform",
    "kernel_transfer",
    "legs_reconstruct",
    "log_uniform",
    "low_rank",
    "modal_transfer",
    "nplr",
    "phi1",
    "ptd",
    "scaled_legs",
]
