// What an instruction set has to provide. Each function works on one panel (or pair of panels) and one tile and keeps no state.
//
// The library holds them for several instruction sets, and a processor may lack all but one: what is in a file that is named after an
// instruction set runs only when `kernels()` has chosen it, and shares no function with other files, of which the linker would keep one.
#pragma once
#include "common/activations.h"
#include "common/layout.h"

namespace qcore {

// y[m][0 … 8) of panel `panel` for the `tokens` (1 … 4) tokens of a tile: reads the codes once, straight from memory.
using PanelKernel = void (*)(const Weight& w, const uint8_t* panel, const Tile& x, float (*y)[kRows]);

// Many tokens: a stretch of a pair of panels is widened once into `Stretch`, then meets tile after tile.
constexpr int kPair = 2 * kRows;
constexpr int kStretch = 8;  // blocks
struct alignas(64) Stretch {
  union {
    uint8_t bytes[kStretch * 8 * 2 * 32];        // [block][step][panel][32]
    int16_t words[kStretch * 16 * 2 * 16];       // [block][pair][panel][16], zero point subtracted
    float floats[kStretch * kBlock * kPair];     // [column][16], times scale
  };
  float scale[kStretch][kPair], offset[kStretch][kPair];  // offset = -scale * zero point, for bytes
};

struct Kernels {
  const char* name;
  bool wide_bytes;  // 8-bit codes meet 8-bit activations as bytes: the sums of their products have 32 bits from the start
  // Quantize `tokens` rows of x, `stride` floats apart, of `columns` values, into a tile.
  void (*fill)(const Form& form, const Tile& to, int tokens, const float* x, int64_t stride, int64_t columns);
  PanelKernel (*panel)(int kind, int mode, int tokens);
  // Widen the blocks first … first + count of the panels a and b (b may be null) of `w`.
  void (*widen)(const Weight& w, const uint8_t* a, const uint8_t* b, int mode, int64_t first, int64_t count, Stretch& to);
  // y[m][0 … 16) += the stretch's part for a tile of `tokens` tokens.
  void (*multiply)(const Weight& w, const Stretch& s, int mode, int64_t first, int64_t count, const Tile& x, int tokens, float (*y)[kPair]);
};

// The fastest that this processor runs, or what qcore_choose chose.
const Kernels& kernels();

// In many_*.cpp; null where the compiler was too old for the instruction set.
extern const Kernels* const kernels_avx512;
extern const Kernels* const kernels_avxvnni;
PanelKernel panel_kernel_avx512(int kind, int mode, int tokens);
PanelKernel panel_kernel_avxvnni(int kind, int mode, int tokens);

void fill_avx2(const Form& form, const Tile& to, int tokens, const float* x, int64_t stride, int64_t columns);
PanelKernel panel_kernel_avx2(int kind, int mode, int tokens);
void widen_avx2(const Weight& w, const uint8_t* a, const uint8_t* b, int mode, int64_t first, int64_t count, Stretch& to);
void multiply_avx2(const Weight& w, const Stretch& s, int mode, int64_t first, int64_t count, const Tile& x, int tokens, float (*y)[kPair]);

void fill_neon(const Form& form, const Tile& to, int tokens, const float* x, int64_t stride, int64_t columns);
void widen_neon(const Weight& w, const uint8_t* a, const uint8_t* b, int mode, int64_t first, int64_t count, Stretch& to);
PanelKernel panel_kernel_neon(int kind, int mode, int tokens);
void multiply_neon(const Weight& w, const Stretch& s, int mode, int64_t first, int64_t count, const Tile& x, int tokens, float (*y)[kPair]);
PanelKernel panel_kernel_dotprod(int kind, int mode, int tokens);
void multiply_dotprod(const Weight& w, const Stretch& s, int mode, int64_t first, int64_t count, const Tile& x, int tokens, float (*y)[kPair]);

}  // namespace qcore
