#include "simd.h"
namespace statescan { namespace STATESCAN_ISA {
void ssd_backward(const SsdGrad&) {}
} }
