// The functions of an instruction set. Each works on one panel (or pair of panels) and one tile, and has no
// state.
//
// The library contains several instruction sets, of which a processor may have only one. Code in a file named
// after an instruction set runs only if `kernels()` has chosen that set. Such files share no function that is
// not inlined: the linker would keep one copy, compiled for one of the sets.
#pragma once
#include "common/activations.h"
#include "common/layout.h"

namespace qcore {

// Set y[m][0 … 8) to the outputs of a panel for the 1 … 4 tokens m of a tile. Reads the codes once, from
// memory.
using PanelKernel = void (*)(const Weight& w, const uint8_t* panel, const Tile& x, float (*y)[kRows]);

// Many tokens: a stretch of a pair of panels is widened once, then multiplied by one tile after another.
constexpr int kPair = 2 * kRows;
constexpr int kStretch = 8;  // blocks per stretch
struct alignas(64) Stretch {
  union {
    uint8_t bytes[kStretch * 8 * 2 * 32];     // [block][step][panel][32]
    int16_t words[kStretch * 16 * 2 * 16];    // [block][pair][panel][16], minus the zero point
    float floats[kStretch * kBlock * kPair];  // [column][16], the weights
  };
  // Of each group of 16 or 32 columns. The offset is multiplied by the sum of the activations: for bytes,
  // −scale · zero point; in all integer modes, the minimum.
  float scale[2 * kStretch][kPair];
  float offset[2 * kStretch][kPair];
};

struct Kernels {
  const char* name;
  // Whether codes of more than 4 bits are multiplied by 8-bit activations as bytes, because products are
  // summed in 32 bits.
  bool wide_bytes;
  // Quantize `tokens` rows of x, of `columns` values and `stride` floats apart, into a tile.
  void (*fill)(const Form& form, const Tile& to, int tokens, const float* x, int64_t stride, int64_t columns);
  PanelKernel (*panel)(int kind, int mode, int tokens);
  // Widen `count` blocks of the panels a and b of `w`, from block `first` on. b may be null.
  void (*widen)(const Weight& w, const uint8_t* a, const uint8_t* b, int mode, int64_t first, int64_t count,
                Stretch& to);
  // Add the products of a stretch and a tile to y[m][0 … 16) for each token m.
  void (*multiply)(const Weight& w, const Stretch& s, int mode, int64_t first, int64_t count, const Tile& x,
                   int tokens, float (*y)[kPair]);
};

// The fastest instruction set of this processor, or the one that qcore_choose has chosen.
const Kernels& kernels();

// Defined in many_*.cpp; null if the compiler does not know the instruction set.
extern const Kernels* const kernels_avx512;
extern const Kernels* const kernels_avxvnni;
PanelKernel panel_kernel_avx512(int kind, int mode, int tokens);
PanelKernel panel_kernel_avxvnni(int kind, int mode, int tokens);

void fill_avx2(const Form& form, const Tile& to, int tokens, const float* x, int64_t stride, int64_t columns);
PanelKernel panel_kernel_avx2(int kind, int mode, int tokens);
void widen_avx2(const Weight& w, const uint8_t* a, const uint8_t* b, int mode, int64_t first, int64_t count,
                Stretch& to);
// Widen codes of at most 8 bits to bytes, for instruction sets that add products of bytes in 32 bits.
void widen_bytes_avx2(const Weight& w, const uint8_t* a, const uint8_t* b, int64_t first, int64_t count,
                      Stretch& to);
void multiply_avx2(const Weight& w, const Stretch& s, int mode, int64_t first, int64_t count, const Tile& x,
                   int tokens, float (*y)[kPair]);

void fill_neon(const Form& form, const Tile& to, int tokens, const float* x, int64_t stride, int64_t columns);
void widen_neon(const Weight& w, const uint8_t* a, const uint8_t* b, int mode, int64_t first, int64_t count,
                Stretch& to);
PanelKernel panel_kernel_neon(int kind, int mode, int tokens);
void multiply_neon(const Weight& w, const Stretch& s, int mode, int64_t first, int64_t count, const Tile& x,
                   int tokens, float (*y)[kPair]);
PanelKernel panel_kernel_dotprod(int kind, int mode, int tokens);
void multiply_dotprod(const Weight& w, const Stretch& s, int mode, int64_t first, int64_t count,
                      const Tile& x, int tokens, float (*y)[kPair]);

}  // namespace qcore
