// What the instructions of a program beside products and the ops' kernels do with one tile.
#pragma once
#include "program.h"
#include "simd.h"

namespace statescan {
namespace STATESCAN_ISA {

// The steps of an instruction over one row of the batch.
void take_steps(const ProgramRun& run, const Instruction& i, int64_t row);

// A tile is one head of one row.
int64_t matrix_step_scratch(const MatrixStep& a);
void matrix_step(const ProgramRun& run, const MatrixStep& a, int64_t tile, char* scratch);

// A tile is one head of one row. What the cache holds afterwards is written by remember().
int64_t attend_scratch(const ProgramRun& run, const Attend& a);
void attend(const ProgramRun& run, const Attend& a, int64_t tile, char* scratch);

// A tile is a piece of the entries of one row, for the keys or the values.
int64_t remember_tiles(const ProgramRun& run, const Attend& a);
void remember(const ProgramRun& run, const Attend& a, int64_t tile);

}  // namespace STATESCAN_ISA
}  // namespace statescan
