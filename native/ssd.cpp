#include "simd.h"
namespace statescan { namespace STATESCAN_ISA {

void ssd(const Ssd&) {}

} }
