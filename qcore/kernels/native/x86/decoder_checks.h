// Checks of the decoder's arguments: no pointer is followed before the sizes are known to fit.
#pragma once
#include <algorithm>

#include "common/decoder.h"
#include "x86/mixture_parts.h"
#include "x86/projection_checks.h"

namespace qcore {

// Norms of heads: over each head, with one set of weights or one per head, or over the whole projection.
inline Status check_heads(const Norm& norm, int64_t heads, int64_t size, bool last) {
  if (norm.kind != kNoNorm && norm.each.data) {
    Norm one = norm;
    one.sets = 1;
    if (norm.sets != heads || norm.bias.data || !norm.each.holds(heads)) return kBadLayout;
    for (int64_t h = 0; h < heads; ++h) {
      one.weight = norm.each.data[h];
      if (const Status status = check(one, size)) return status;
    }
    return kOk;
  }
  if (norm.kind == kNoNorm || norm.width == size) return check(norm, size, norm.sets == 1 ? 1 : heads);
  return norm.kind == kRootMeanSquare && !last ? check(norm, heads * size) : kBadLayout;
}

// Attention over latents, whose inputs have been checked.
inline Status check_latent(const Attention& a, int64_t hidden) {
  const Latent& latent = a.latent;
  for (const int64_t size : {latent.rank, latent.plain, latent.rotated, latent.values})
    if (!fits(size)) return kBadLayout;
  const int64_t size = latent.plain + latent.rotated;
  if (latent.rank % 8 || latent.values % 8 || latent.rotated % 2 || a.kv_heads != 1 ||
      size > INT32_MAX / a.heads || a.head_size != latent.rank + latent.rotated ||
      a.value_size != latent.rank)
    return kBadLayout;
  if (latent.queries.rows) {
    if (const Status status = check_packed(latent.queries, a.heads * size, a.inputs[0].rows)) return status;
    if (const Status status = check(latent.query_norm, a.inputs[0].rows)) return status;
  } else if (a.inputs[0].rows != a.heads * size) {
    return kBadLayout;
  }
  if (const Status status = check(latent.norm, latent.rank)) return status;
  if (a.sinks.data && !a.sinks.holds(a.heads)) return kShortWeights;
  if (!latent.matrices.holds(a.heads * (latent.plain + latent.values), latent.rank)) return kShortWeights;
  return check_packed(a.output, hidden, a.heads * latent.values);
}

// Of layer `l`, whose keys and values another layer may have added.
inline Status check(const Model& model, int64_t l, int64_t rotations) {
  const Attention& attention = model.blocks.data[l].attention;
  const int64_t hidden = model.hidden, source = attention.source;
  const int64_t size = attention.head_size;
  if (!fits(attention.heads) || !fits(attention.kv_heads) || !fits(size)) return kBadLayout;
  if (attention.heads % attention.kv_heads || size % 8 || attention.window < 0) return kBadLayout;
  if (!fits(attention.value_size) || attention.value_size % 8) return kBadLayout;
  if (attention.input_count < 1 || attention.input_count > kInputs) return kBadLayout;
  if (attention.rotation < -1 || attention.rotation >= rotations) return kBadLayout;
  int64_t width = 0;
  for (int64_t i = 0; i < attention.input_count; ++i) {
    const Projection& input = attention.inputs[i];
    if (!fits(input.rows)) return kBadLayout;
    if (const Status status = check_packed(input, input.rows, hidden)) return status;
    width += input.rows;
  }
  const int64_t group = attention.heads / attention.kv_heads;
  const auto inside = [&](const Heads& heads, int64_t values) {
    const int64_t rest = width - heads.first - values;  // for the steps after the first
    return heads.first >= 0 && heads.first <= width && rest >= 0 && heads.step >= 0 &&
           (heads.step == 0 || attention.kv_heads - 1 <= rest / heads.step);
  };
  if (attention.latent.rank) {
    if (source != l || attention.rotation < 0 || !inside(attention.keys, size)) return kBadLayout;
    return check_latent(attention, hidden);
  }
  if (!inside(attention.queries, group * size)) return kBadLayout;
  if (source == l) {
    if (!inside(attention.keys, size) || !inside(attention.values, attention.value_size)) return kBadLayout;
  } else {
    if (source < 0 || source > l) return kBadLayout;
    const Attention& other = model.blocks.data[source].attention;
    if (other.source != source || other.kv_heads != attention.kv_heads || other.head_size != size ||
        other.value_size != attention.value_size || other.latent.rank)
      return kBadLayout;
  }
  if (const Status status = check_heads(attention.query_norm, attention.heads, size, attention.norm_last))
    return status;
  if (const Status status = check_heads(attention.key_norm, attention.kv_heads, size, attention.norm_last))
    return status;
  if (const Status status = check(attention.value_norm, attention.value_size)) return status;
  if (attention.sinks.data && !attention.sinks.holds(attention.heads)) return kShortWeights;
  return check_packed(attention.output, hidden, attention.heads * attention.value_size);
}

inline Status check(const Buffer<const Mixture>& mixture, int64_t hidden) {
  if (!mixture.holds(1)) return kShortWeights;
  return mixture.data->hidden == hidden ? check_mixture(*mixture.data) : kBadLayout;
}

inline Status check(const FeedForward& part, int64_t hidden) {
  if (part.kind == kMixture) return check(part.mixture, hidden);
  if (part.kind != kDense || part.activation < kSilu || part.activation > kGeluQuick || !fits(part.inner))
    return kBadLayout;
  if (const Status status = check_packed(part.gate, part.inner, hidden)) return status;
  if (part.gated)
    if (const Status status = check_packed(part.up, part.inner, hidden)) return status;
  return check_packed(part.down, hidden, part.inner);
}

// The token's own part of a block, which reads columns of the table `rows`.
inline Status check(const TokenPart& part, const Projection& rows, int64_t hidden) {
  const int64_t width = part.gate.rows;
  if (!width) return kOk;
  if (!fits(width) || width % 8 || part.activation < kSilu || part.activation > kGeluQuick) return kBadLayout;
  if (part.first < 0 || part.first > rows.columns - width) return kBadLayout;
  for (const Projection* each : {&part.gate, &part.mix})
    if (const Status status = check_packed(*each, width, hidden)) return status;
  if (const Status status = check_packed(part.down, hidden, width)) return status;
  if (const Status status = check(part.norm, width)) return status;
  return check(part.after, hidden);
}

inline Status check(const Model& model, const Block& block) {
  const int64_t hidden = model.hidden;
  for (const Norm* norm : {&block.before_attention, &block.after_attention, &block.before_feed_forward,
                           &block.after_feed_forward})
    if (const Status status = check(*norm, hidden)) return status;
  if (block.beside.data) {
    if (block.parallel) return kBadLayout;
    if (const Status status = check(block.beside, hidden)) return status;
    for (const Norm* norm : {&block.after_dense, &block.after_beside})
      if (const Status status = check(*norm, hidden)) return status;
  }
  if (block.scale.data && !block.scale.holds(1)) return kShortWeights;
  if (const Status status = check(block.token, model.token_rows, hidden)) return status;
  return check(block.feed_forward, hidden);
}

inline Status check(const Model& model, int64_t rotations) {
  for (const int64_t size : {model.layers, model.hidden, model.vocabulary})
    if (!fits(size)) return kBadLayout;
  if (!model.blocks.holds(model.layers)) return kShortWeights;
  if (model.positions.rows)
    if (const Status status = check(model.positions, model.positions.rows, model.hidden)) return status;
  if (const Status status = check(model.final_norm, model.hidden)) return status;
  if (const Status status = check(model.head, model.vocabulary, model.hidden)) return status;
  if (const Status status = check(model.embedding, model.embedding.rows, model.hidden)) return status;
  const Projection& rows = model.token_rows;
  if (rows.rows)
    if (const Status status = check(rows, rows.rows, rows.columns)) return status;
  for (int64_t l = 0; l < model.layers; ++l) {
    if (model.blocks.data[l].token.gate.rows && (!rows.rows || !fits(rows.columns))) return kBadLayout;
    if (const Status status = check(model, l, rotations)) return status;
    if (const Status status = check(model, model.blocks.data[l])) return status;
  }
  return kOk;
}

// The positions before `end`, in the rotations that blocks use and in learned positions.
inline Status check_positions(const Model& model, const Call& call, int64_t end) {
  const int64_t offset = model.position_offset;
  if (model.positions.rows && (offset < 0 || offset > model.positions.rows - end)) return kShortRotation;
  for (int64_t l = 0; l < model.layers; ++l) {
    const Attention& attention = model.blocks.data[l].attention;
    if (attention.rotation < 0) continue;
    const Rotation& rotation = call.rotations.data[attention.rotation];
    if (rotation.size < 2 || rotation.size % 2 || rotation.size > attention.head_size) return kBadLayout;
    if (attention.latent.rank && rotation.size != attention.latent.rotated) return kBadLayout;
    if (!rotation.cosines.holds(end, rotation.size / 2) || !rotation.sines.holds(end, rotation.size / 2))
      return kShortRotation;
    if (rotation.scales.data && !rotation.scales.holds(end)) return kShortRotation;
  }
  return kOk;
}

inline Status check(const Model& model, const Cache& cache, const Call& call) {
  const int64_t rotations = call.rotations.data ? call.rotations.bytes / int64_t(sizeof(Rotation)) : 0;
  if (const Status status = check(model, rotations)) return status;
  for (const int64_t size : {call.sequences, call.tokens, call.threads, call.chunk, cache.capacity})
    if (!fits(size)) return kBadLayout;
  const int64_t end = call.position + call.tokens;
  if (call.position < 0 || call.position > cache.capacity || end > cache.capacity || cache.capacity % 8)
    return kShortCache;
  if (!cache.keys.holds(model.layers) || !cache.values.holds(model.layers)) return kShortCache;
  for (int64_t l = 0; l < model.layers; ++l) {
    const Attention& attention = model.blocks.data[l].attention;
    if (attention.source != l) continue;
    const int64_t heads = call.sequences * attention.kv_heads, bytes = cache.half ? 2 : 4;
    const auto holds = [&](const Buffer<void>& held, int64_t size) {
      const Buffer<uint8_t> slots{static_cast<uint8_t*>(held.data), held.bytes / (size * bytes)};
      return slots.holds(heads, cache.capacity);
    };
    if (!holds(cache.keys.data[l], attention.head_size) || !holds(cache.values.data[l], attention.value_size))
      return kShortCache;
  }
  if (const Status status = check_positions(model, call, end)) return status;
  if (!call.ids.holds(call.sequences, call.tokens) ||
      (call.starts.data && !call.starts.holds(call.sequences)))
    return kShortInput;
  const int64_t tokens = call.sequences * call.tokens;
  if (call.embeds.data && !call.embeds.holds(tokens, model.hidden)) return kShortInput;
  if (model.token_rows.rows && call.embeds.data && !call.token_rows.holds(tokens, model.token_rows.columns))
    return kShortInput;
  const int64_t known =
      model.token_rows.rows ? std::min(model.embedding.rows, model.token_rows.rows) : model.embedding.rows;
  for (int64_t i = 0; i < tokens; ++i)
    if (call.ids.data[i] < 0 || call.ids.data[i] >= known) return kBadIndex;
  for (int64_t i = 0; call.starts.data && i < call.sequences; ++i)
    if (call.starts.data[i] < 0) return kBadIndex;
  if (call.hidden.data && call.last)
    return call.sequences == 1 && call.hidden.holds(model.hidden) ? kOk : kShortOutput;
  if (call.hidden.data) return call.hidden.holds(tokens, model.hidden) ? kOk : kShortOutput;
  return call.sequences == 1 && call.logits.holds(model.vocabulary) && call.best ? kOk : kShortOutput;
}

}  // namespace qcore
