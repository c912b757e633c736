// The packing planner: ragged samples to micro-batches under a token budget, balanced over data-parallel ranks.
#pragma once

#include <cstdint>
#include <vector>

namespace ralign {

// A micro-batch costs the sum over its samples of linear * length + quadratic * length^2.
struct Cost {
    double linear;
    double quadratic;
};

struct PlanOptions {
    int64_t token_budget;  // no micro-batch holds more, padded to a multiple of pad_multiple
    int64_t pad_multiple;
    int64_t dp_size;   // ranks
    int64_t multiple;  // each rank's number of micro-batches is a multiple of it
    Cost cost;
    bool balance;           // false: bins as best-fit-decreasing leaves them, dealt in turn
    const int64_t* groups;  // [n] or null: samples of one group go to one rank
};

// Rank r's micro-batches are bins r * k to (r + 1) * k - 1, with k = num_bins / dp_size; bin b holds samples
// indices[offsets[b]] to indices[offsets[b + 1] - 1], ascending.
struct Plan {
    std::vector<int64_t> indices;  // [n], every sample once
    std::vector<int64_t> offsets;  // [num_bins + 1]
};

// Budgets above this are refused: the planner keeps a table with an entry for each possible free space.
constexpr int64_t kMaxTokenBudget = int64_t{1} << 26;
constexpr int64_t kMaxBinUnit = int64_t{1} << 20;  // of dp_size * multiple

// lengths [n], each from 1 to token_budget.
//
// Without groups the number of bins is the smallest multiple of dp_size * multiple that best-fit-decreasing can do
// with. Bins cost alike where the budget leaves room for that; bins that ranks work on side by side cost alike, and
// exchanges of bins and samples bring the ranks' costs together. With groups, whole groups go to the ranks first,
// and each rank has as many bins as the one that needs most. Where there are fewer samples than bins, or all are
// spread already, bins stay empty.
//
// The same input gives the same plan; of equal lengths the earlier sample is placed first. Throws
// std::invalid_argument, naming what does not fit. O(n log n) time, O(n + token_budget) memory.
Plan plan(const int64_t* lengths, int64_t n, const PlanOptions& options);

}  // namespace ralign
