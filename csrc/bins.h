// Samples into bins under a hard cap on tokens.
#pragma once

#include <cstdint>

#include "pool.h"

namespace ralign {

// Samples by falling length, equal lengths in their given order. Costs are whole numbers, so that their sums do
// not depend on the order of adding; they fall with the lengths.
struct Items {
    Scratch<int32_t> sample;
    Scratch<int32_t> length;
    Scratch<int64_t> cost;
    int64_t total_cost = 0;

    int64_t size() const { return static_cast<int64_t>(sample.size()); }
};

struct Bins {
    Scratch<int32_t> bin_of;  // of each item
    Scratch<int32_t> space;   // of each bin: tokens that it can still take
    Scratch<int64_t> cost;    // of each bin

    int64_t size() const { return static_cast<int64_t>(space.size()); }
};

// The fewest bins that the classic heuristic finds: each item, longest first, into the fullest bin that has room.
// Leaves the bins' costs to add_costs.
Bins best_fit_decreasing(const Items& items, int32_t capacity);

// `num_bins` of like cost: each item, longest first, into the cheapest bin that has room (costs compared to within
// 1/16384 of the greatest a bin could have). No bins at all if an item finds none with room.
Bins spread_evenly(const Items& items, int64_t num_bins, int32_t capacity);

void add_costs(Bins& bins, const Items& items);

// Splits the costliest bin that has two items or more into halves of like cost until there are `num_bins`; empty
// bins follow when no bin is left to split.
void split_to(Bins& bins, const Items& items, int64_t num_bins, int32_t capacity);

}  // namespace ralign
