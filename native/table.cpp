#include "simd.h"

namespace statescan {
namespace STATESCAN_ISA {

void selective_scan(const SelectiveScan&);
void selective_scan_backward(const SelectiveScanGrad&);
void causal_conv1d(const CausalConv&);
void causal_conv1d_backward(const CausalConvGrad&);
void ssd(const Ssd&);
void ssd_backward(const SsdGrad&);
void matrix_state(const MatrixState&);
void matrix_state_backward(const MatrixStateGrad&);
void mamba3(const Mamba3&);
void mamba3_backward(const Mamba3Grad&);
void log_linear(const LogLinear&);
void log_linear_backward(const LogLinearGrad&);
void mesa(const Mesa&);
void mesa_backward(const MesaGrad&);
void slstm(const Slstm&);
void slstm_backward(const SlstmGrad&);
void diagonal_scan(const DiagonalScan&);
void diagonal_scan_backward(const DiagonalScanGrad&);
void product(const Product&);
void dequantize(const Dequantize&);
void gemm(const Gemm&);
void run_program(const ProgramRun&);
void rms_norm(const RmsNorm&);
void rms_norm_backward(const RmsNormGrad&);
void dplr_kernel(const DplrKernel&);
void dplr_kernel_backward(const DplrKernelGrad&);

Kernels table() {
    return {selective_scan, selective_scan_backward, causal_conv1d, causal_conv1d_backward,
            ssd,            ssd_backward,            matrix_state,  matrix_state_backward, mamba3, mamba3_backward, log_linear, log_linear_backward, mesa, mesa_backward,
            slstm, slstm_backward, diagonal_scan, diagonal_scan_backward, product, dequantize, gemm, run_program,
            rms_norm,       rms_norm_backward, dplr_kernel, dplr_kernel_backward};
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
