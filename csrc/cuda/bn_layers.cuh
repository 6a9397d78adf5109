// How the layers of a network are divided among the blocks of one launch.
#pragma once

#include "channel_parts.cuh"
#include "column_block.cuh"

namespace synq {
namespace {

constexpr int64_t kStepsPerThread = 8;  // at least, before a channel is split
constexpr int kLayers = 32;             // of one launch: a kernel's parameters have 4 KB

// How one layer is read. Depends on its shape, type and alignment alone.
struct Plan {
  bool by_column;  // memory as an (outer, channels * inner) matrix, else channel by channel
  bool packed;
  int lanes;  // threads side by side on the columns
  int64_t splits;
  int64_t items;  // blocks that it takes
  int64_t parts;  // per channel

  bool reads_like(const Plan& other) const { return by_column == other.by_column && packed == other.packed; }
};

// Packs have so many elements where memory is read by column, else pack_size.
template <typename T>
Plan make_plan(const Layout& layout, int column_pack, bool aligned) {
  Plan plan{};
  plan.by_column = is_narrow(layout);
  const int64_t pack = plan.by_column ? column_pack : pack_size<T>();
  plan.packed = aligned && (plan.by_column ? layout.columns() : layout.inner) % pack == 0;
  const int64_t count = plan.packed ? pack : 1;
  const int64_t packs = ceil_divide(layout.columns(), count);
  plan.lanes = plan.by_column ? lanes_for(packs, count * static_cast<int64_t>(sizeof(T))) : 1;
  const int64_t units = plan.by_column ? ceil_divide(packs, plan.lanes) : layout.channels;
  const int64_t steps = plan.by_column ? ceil_divide(layout.outer, kThreads / plan.lanes)
                                       : ceil_divide(layout.length(), kThreads * count);
  plan.splits = std::min(ceil_divide(steps, kStepsPerThread), ceil_divide(kReductionParts, units));
  plan.items = units * plan.splits;
  plan.parts = plan.by_column ? layout.inner * plan.splits : plan.splits;
  return plan;
}

// Layers of one launch. Those of `Entry` lie one after another among the items, the i-th up to ends[i].
template <typename Entry>
struct Table {
  int32_t count;
  int64_t ends[kLayers];
  Entry entries[kLayers];

  int64_t items() const { return count == 0 ? 0 : ends[count - 1]; }
  void append(int64_t items_of_entry, const Entry& entry) {
    ends[count] = items() + items_of_entry;
    entries[count++] = entry;
  }
};

// Where an item of growing ones lies: its entry, and its place there.
struct TablePlace {
  int entry = 0;
  int64_t first = 0;

  template <typename Entry>
  __device__ __forceinline__ int64_t find(const Table<Entry>& table, int64_t item) {
    while (item >= table.ends[entry]) first = table.ends[entry++];
    return item - first;
  }
};

// Calls launch(table) with up to kLayers entries at a time; fill(index, table) appends the entry of a layer, or not.
template <typename Entry, typename Fill, typename Launch>
int launch_tables(int64_t count, const Fill& fill, const Launch& launch_table) {
  Table<Entry> table{};
  for (int64_t i = 0; i < count; ++i) {
    fill(i, table);
    if (table.count == 0 || (table.count < kLayers && i + 1 < count)) continue;
    const int error = launch_table(table);
    if (error != cudaSuccess) return error;
    table.count = 0;
  }
  return cudaSuccess;
}

// 64-bit division takes several times as long.
__device__ __forceinline__ int64_t divide(int64_t value, int64_t divisor) {
  if (((value | divisor) >> 32) == 0) return static_cast<uint32_t>(value) / static_cast<uint32_t>(divisor);
  return value / divisor;
}

}  // namespace
}  // namespace synq
