#include "simd.h"
namespace statescan { namespace STATESCAN_ISA {


void diagonal_scan(const DiagonalScan&) {} void diagonal_scan_backward(const DiagonalScanGrad&) {}
} }
