// Products of many tokens with the matrices of experts, divided among threads.
#pragma once
#include <atomic>

#include "x86/mixture_parts.h"
#include "x86/threads.h"

namespace qcore {

// A list of products: one thread plans it by `begin` and `add`, then all threads `run` it.
class ProductJobs {
 public:
  // At most `products` at a time, whose activations take at most `bytes`.
  ProductJobs(int64_t products, int64_t bytes, Barrier& barrier)
      : barrier_(barrier), products_(products), activations_(bytes) {}

  bool ok() const { return products_ && activations_; }

  void begin() {
    product_count_ = tile_count_ = job_count_ = 0;
    next_tile_ = next_job_ = 0;
    free_ = activations_.data();
  }

  // Append a product, which reads the activations of the one before it if that is `like` it.
  void add(const Projection& p, const Hit& hit, float* out, int64_t stride, const Projection* like) {
    const bool few = hit.count <= kTile;
    Product& product = products_.data()[product_count_++];
    product = {&p,     &hit, like ? (&product - 1)->activations : free_, tile_count_, job_count_, out,
               stride, few};
    if (!like) {
      free_ += Activations::bytes(*p.packed, p.mode, hit.count, few);
      tile_count_ += (hit.count + kTile - 1) / kTile;
    }
    const int64_t panels = panel_count(*p.packed);
    job_count_ += few ? (panels + kPanelsAtOnce - 1) / kPanelsAtOnce
                      : (panels + 1) / 2 * ((hit.count + kTokensAtOnce - 1) / kTokensAtOnce);
  }

  // Fill the activations of all products, then multiply. `read(product, pair, out)` writes one row of input
  // into `own`, which has room for a tile. All threads call it, and return when all products are stored.
  template <class Read>
  void run(Read&& read, float* own) {
    const Product* products = products_.data();
    int64_t at = 0;
    for (int64_t tile; (tile = next_tile_.fetch_add(1)) < tile_count_;) {
      while (at + 1 < product_count_ && products[at + 1].tiles <= tile) ++at;
      int64_t p = at;  // products that share activations begin at the same tile: the first one has them
      while (p > 0 && products[p - 1].activations == products[p].activations) --p;
      const Product& product = products[p];
      Activations input = product.input();
      const int64_t index = tile - product.tiles, columns = product.matrix->columns;
      for (int i = 0; i < input.tile_tokens(index); ++i)
        read(product, product.hit->first + index * kTile + i, own + i * columns);
      input.fill(index, own, columns, columns);
    }
    barrier_.wait();
    Stretch stretch;
    at = 0;
    for (int64_t job; (job = next_job_.fetch_add(1)) < job_count_;) {
      while (at + 1 < product_count_ && products[at + 1].jobs <= job) ++at;
      const Product& product = products[at];
      const Weight& w = *product.matrix->packed;
      const Activations input = product.input();
      const int64_t index = job - product.jobs, panels = panel_count(w);
      if (product.few) {
        few_panels(w, product.matrix->mode, input, int(product.hit->count), index * kPanelsAtOnce,
                   std::min((index + 1) * kPanelsAtOnce, panels), product.matrix->bias.data, product.out,
                   product.stride);
        continue;
      }
      const int64_t pairs = (panels + 1) / 2, at_once = kTokensAtOnce / kTile,
                    first = index / pairs * at_once;
      many_pair(w, product.matrix->mode, input, first, std::min(first + at_once, input.tiles()),
                index % pairs, product.matrix->bias.data, product.out, product.stride, stretch);
    }
    barrier_.wait();
  }

 private:
  static constexpr int64_t kPanelsAtOnce = 8;  // per job of a hit with few tokens

  Barrier& barrier_;
  const Memory<Product> products_;
  const Memory<uint8_t> activations_;
  int64_t product_count_ = 0, tile_count_ = 0, job_count_ = 0;
  std::atomic<int64_t> next_tile_{0}, next_job_{0};
  uint8_t* free_ = nullptr;
};

}  // namespace qcore
