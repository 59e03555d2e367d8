// Conversion of stored rows of codes to panels and back, in plain C++: the compiler vectorizes the loops that
// matter.
#include "common/pack.h"

#include <omp.h>

#include <algorithm>
#include <cstring>

namespace qcore {

struct Stored {  // the parts of a QuantizedTensor, with one byte per zero point
  int64_t bits;
  int64_t row_bytes, groups;
  Buffer<uint8_t> codes;     // (rows, row_bytes)
  Buffer<uint16_t> scale;    // (rows, groups); absent for row tables
  Buffer<uint8_t> zero;      // (rows, groups); absent if the weight stores no zero points
  Buffer<uint16_t> tables;   // (rows, 16); row tables only
  Buffer<uint16_t> minimum;  // (rows, groups); formats with minimums only
  Buffer<uint8_t> scale_integers,
      minimum_integers;  // (rows, groups of a row); K-quants, whose `groups` are super-blocks
};

namespace {

// Eight codes of `bits` bits take `bits` bytes, little-endian (formats/packing.py).
void read_row(const uint8_t* row, int bits, int64_t columns, uint8_t* codes) {
  if (bits == 8) {
    std::memcpy(codes, row, columns);
    return;
  }
  if (bits == 4) {
    for (int64_t i = 0; i < columns / 2; ++i) {
      codes[2 * i] = row[i] & 15;
      codes[2 * i + 1] = row[i] >> 4;
    }
    if (columns % 2) codes[columns - 1] = row[columns / 2] & 15;
    return;
  }
  for (int64_t k = 0; k < columns; k += 8, row += bits) {
    uint64_t word = 0;
    std::memcpy(&word, row, bits);
    for (int64_t i = 0; i < std::min<int64_t>(8, columns - k); ++i)
      codes[k + i] = (word >> (i * bits)) & ((1u << bits) - 1);
  }
}

void write_row(const uint8_t* codes, int bits, int64_t columns, uint8_t* row) {
  if (bits == 8) {
    std::memcpy(row, codes, columns);
    return;
  }
  if (bits == 4) {
    for (int64_t i = 0; i < columns / 2; ++i) row[i] = codes[2 * i] | (codes[2 * i + 1] << 4);
    if (columns % 2) row[columns / 2] = codes[columns - 1];
    return;
  }
  for (int64_t k = 0; k < columns; k += 8, row += bits) {
    uint64_t word = 0;
    for (int64_t i = 0; i < std::min<int64_t>(8, columns - k); ++i)
      word |= uint64_t(codes[k + i]) << (i * bits);
    std::memcpy(row, &word, bits);
  }
}

#if defined(__x86_64__)
constexpr auto write_block = write_block_avx2;
constexpr auto read_block = read_block_avx2;
#else
// The same in plain C++. `out` is zero.
void write_block(Planes planes, const uint8_t* codes, int64_t stride, uint8_t* out) {
  for (int step = 0; step < 8; ++step)
    for (int r = 0; r < kRows; ++r)
      for (int j = 0; j < 4; ++j) {
        const int code = codes[r * stride + 4 * step + j], at = 4 * r + j;
        const auto put = [&](int width, int value, uint8_t* plane) {
          plane[32 * (step * width / 8) + at] |= (value & ((1 << width) - 1)) << (step * width % 8);
        };
        put(planes.first, code, out);
        if (planes.second) put(planes.second, code >> planes.first, out + 32 * planes.first);
      }
}

void read_block(Planes planes, const uint8_t* in, uint8_t* codes, int64_t stride) {
  for (int step = 0; step < 8; ++step)
    for (int r = 0; r < kRows; ++r)
      for (int j = 0; j < 4; ++j) codes[r * stride + 4 * step + j] = code_at(planes, in, step, 4 * r + j);
}
#endif

// Return whether codes of `bits` bits are stored as blocks of `kind`. Codes of 7 bits take 8.
bool fits(int kind, int64_t bits) {
  const int width = planes_of(kind).first + planes_of(kind).second;
  return bits == width || (bits == 7 && width == 8);
}

// The groups of a row: those of a K-quant have 32 or 16 columns.
int64_t integer_count(const Weight& w) { return w.blocks * halves_of(w.kind); }

// Return kOk if the weight's parts are as large as its layout requires.
Status check(const Weight& w, const Stored& s) {
  if (const Status status = check(w)) return status;
  if (!fits(w.kind, s.bits)) return kBadLayout;
  if (s.row_bytes < (w.columns + 7) / 8 * s.bits || !s.codes.holds(w.rows, s.row_bytes)) return kShortCodes;
  if (w.kind == kRowTable) return s.tables.holds(w.rows, 16) ? kOk : kShortTable;
  if (s.groups != group_count(w)) return kBadLayout;
  if (!s.scale.holds(w.rows, s.groups)) return kShortScales;
  const bool minimums = is_super(w.kind) ? has_super_minimums(w.kind) : w.zero_bytes == kMinimums;
  if (minimums && !s.minimum.holds(w.rows, s.groups)) return kShortMinimums;
  if (is_super(w.kind)) {
    if (!s.scale_integers.holds(w.rows, integer_count(w))) return kShortScales;
    return !minimums || s.minimum_integers.holds(w.rows, integer_count(w)) ? kOk : kShortMinimums;
  }
  return !w.zero_bytes || minimums || s.zero.holds(w.rows, s.groups) ? kOk : kShortZeros;
}

// Write what precedes the blocks of group `g`, for the rows first … first + used − 1.
void write_header(const Weight& w, const Stored& s, int64_t first, int used, int64_t g, uint8_t* out) {
  for (int r = 0; r < used; ++r) {
    const int64_t at = (first + r) * s.groups + g;
    std::memcpy(out + 2 * r, s.scale.data + at, 2);
    if (header_bytes(w) == 32) std::memcpy(out + 16 + 2 * r, s.minimum.data + at, 2);
    if (w.zero_bytes == 8) out[16 + r] = s.zero.data[at];
    if (w.zero_bytes == 4) out[16 + r / 2] |= s.zero.data[at] << (4 * (r % 2));
  }
}

void read_header(const Weight& w, const Stored& s, int64_t first, int used, int64_t g, const uint8_t* in) {
  for (int r = 0; r < used; ++r) {
    const int64_t at = (first + r) * s.groups + g;
    std::memcpy(s.scale.data + at, in + 2 * r, 2);
    if (header_bytes(w) == 32) std::memcpy(s.minimum.data + at, in + 16 + 2 * r, 2);
    if (w.zero_bytes == 8) s.zero.data[at] = in[16 + r];
    if (w.zero_bytes == 4) s.zero.data[at] = (in[16 + r / 2] >> (4 * (r % 2))) & 15;
  }
}

// Write the integers in front of block `b` of a K-quant.
void write_integers(const Weight& w, const Stored& s, int64_t first, int used, int64_t b, uint8_t* out) {
  const int halves = halves_of(w.kind);
  for (int half = 0; half < halves; ++half)
    for (int r = 0; r < used; ++r) {
      const int64_t at = (first + r) * integer_count(w) + b * halves + half;
      uint8_t& byte = out[kRows * half + r];
      byte = s.scale_integers.data[at];
      if (w.kind == kSuper2) byte = (byte & 15) | s.minimum_integers.data[at] << 4;
      if (halves == 1) out[kRows + r] = s.minimum_integers.data[at];
    }
}

void read_integers(const Weight& w, const Stored& s, int64_t first, int used, int64_t b, const uint8_t* in) {
  const int halves = halves_of(w.kind);
  for (int half = 0; half < halves; ++half)
    for (int r = 0; r < used; ++r) {
      const int64_t at = (first + r) * integer_count(w) + b * halves + half;
      const uint8_t byte = in[kRows * half + r];
      s.scale_integers.data[at] = w.kind == kSuper2 ? byte & 15 : byte;
      if (w.kind == kSuper2) s.minimum_integers.data[at] = byte >> 4;
      if (halves == 1) s.minimum_integers.data[at] = in[kRows + r];
    }
}

void pack_panel(const Weight& w, const Stored& s, int64_t panel, uint8_t* rows) {
  const int64_t stride = w.blocks * kBlock, first = panel * kRows;
  const int used = int(std::min<int64_t>(kRows, w.rows - first));
  uint8_t* out = w.panels.data + panel * w.panel_bytes;
  std::memset(rows, 0, kRows * stride);
  for (int r = 0; r < used; ++r)
    read_row(s.codes.data + (first + r) * s.row_bytes, s.bits, w.columns, rows + r * stride);
  std::memset(out, 0, w.panel_bytes);
  if (w.kind == kRowTable) {
    std::memcpy(out, s.tables.data + first * 16, used * 32);
    out += kRows * 32;
    for (int64_t k = 0; k < stride; k += 64)
      for (int r = 0; r < kRows; ++r, out += 32)
        for (int i = 0; i < 32; ++i) out[i] = rows[r * stride + k + i] | (rows[r * stride + k + 32 + i] << 4);
    return;
  }
  const Planes planes = planes_of(w.kind);
  const int size = code_bytes(w.kind);
  for (int64_t b = 0; b < w.blocks; ++b, out += size) {
    if (b % w.group_blocks == 0) {
      write_header(w, s, first, used, b / w.group_blocks, out);
      out += header_bytes(w);
    }
    if (is_super(w.kind)) {
      write_integers(w, s, first, used, b, out);
      out += kIntegers;
    }
    write_block(planes, rows + b * kBlock, stride, out);
  }
}

void unpack_panel(const Weight& w, const Stored& s, int64_t panel, uint8_t* rows) {
  const int64_t stride = w.blocks * kBlock, first = panel * kRows;
  const int used = int(std::min<int64_t>(kRows, w.rows - first));
  const uint8_t* in = w.panels.data + panel * w.panel_bytes;
  if (w.kind == kRowTable) {
    std::memcpy(s.tables.data + first * 16, in, used * 32);
    in += kRows * 32;
    for (int64_t k = 0; k < stride; k += 64)
      for (int r = 0; r < kRows; ++r, in += 32)
        for (int i = 0; i < 32; ++i) {
          rows[r * stride + k + i] = in[i] & 15;
          rows[r * stride + k + 32 + i] = in[i] >> 4;
        }
  } else {
    const Planes planes = planes_of(w.kind);
    const int size = code_bytes(w.kind);
    for (int64_t b = 0; b < w.blocks; ++b, in += size) {
      if (b % w.group_blocks == 0) {
        read_header(w, s, first, used, b / w.group_blocks, in);
        in += header_bytes(w);
      }
      if (is_super(w.kind)) {
        read_integers(w, s, first, used, b, in);
        in += kIntegers;
      }
      read_block(planes, in, rows + b * kBlock, stride);
    }
  }
  for (int r = 0; r < used; ++r)
    write_row(rows + r * stride, s.bits, w.columns, s.codes.data + (first + r) * s.row_bytes);
}

// Call `work(panel, rows)` for every panel on all threads; `rows` (8, 32 * blocks) is working memory of the
// thread.
template <class Work>
Status for_panels(const Weight& w, int threads, Work&& work) {
  threads = thread_count(threads);
  const int64_t each = kRows * w.blocks * kBlock;
  const Memory<uint8_t> memory(threads * each);
  if (!memory) return kNoMemory;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t p = 0; p < panel_count(w); ++p) work(p, memory.data() + omp_get_thread_num() * each);
  return kOk;
}

}  // namespace
}  // namespace qcore

using namespace qcore;

extern "C" {
#pragma GCC visibility push(default)

// Return the bytes of a panel of `w`, or −1 if the numbers that determine it are inconsistent.
int64_t qcore_panel_bytes(const Weight* w) { return is_consistent(*w) ? panel_size(*w) : -1; }

// Pack the stored parts into w->panels.
int qcore_pack(const Weight* w, const Stored* stored, int threads) {
  if (const Status status = check(*w, *stored)) return status;
  return for_panels(*w, threads, [&](int64_t panel, uint8_t* rows) { pack_panel(*w, *stored, panel, rows); });
}

// Unpack w->panels into the stored parts.
int qcore_unpack(const Weight* w, const Stored* stored, int threads) {
  if (const Status status = check(*w, *stored)) return status;
  return for_panels(*w, threads,
                    [&](int64_t panel, uint8_t* rows) { unpack_panel(*w, *stored, panel, rows); });
}

#pragma GCC visibility pop
}  // extern "C"
